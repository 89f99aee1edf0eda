"""Evaluation of masks against the ground truth: metrics, statistics, tuning of the postprocessing, comparison."""
