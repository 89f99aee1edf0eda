"""Prompts: drawn from masks, read from files, written again."""
