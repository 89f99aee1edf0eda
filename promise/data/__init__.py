"""From files to batches: the split CSV, pictures, samples and a synthetic set; knows no model."""
