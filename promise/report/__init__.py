"""The HTML report of a run and its evaluations, in one self-contained file."""
