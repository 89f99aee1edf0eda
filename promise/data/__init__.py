"""Data sets: split CSVs, image files, samples, transforms, preparation, validation and a synthetic set."""
