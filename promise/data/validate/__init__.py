"""Validate data sets: unreadable files, suspicious masks, leaks between splits."""
