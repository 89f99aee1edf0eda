"""Masks for images; knows no ground truth and no metrics."""
