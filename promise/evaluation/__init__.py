"""Scores of a net's masks against the ground truth, and what is made of them."""
