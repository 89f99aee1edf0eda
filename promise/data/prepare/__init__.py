"""Convert raw downloads into square images, masks and split CSVs, and predicted masks back to the original size."""
