"""Prompters: modules that place a net's prompts, one file each."""
