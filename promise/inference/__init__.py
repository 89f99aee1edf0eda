"""Inference: masks of images, without ground truth."""
