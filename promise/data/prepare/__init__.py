"""Raw downloads → square images, masks and split CSVs."""
