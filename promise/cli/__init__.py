"""The commands, one small file each: flags and words; knows no tensors."""
