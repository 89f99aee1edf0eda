"""Checks of data sets: unreadable files, doubtful masks, leaks between splits."""
