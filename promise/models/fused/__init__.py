"""Frozen image encoders arranged for inference: the same numbers, less work."""
