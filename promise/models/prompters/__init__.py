"""Prompters: modules that predict the prompts of a net, one per file."""
