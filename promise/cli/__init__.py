"""The commands, one file each: flags, printed output, exit status."""
