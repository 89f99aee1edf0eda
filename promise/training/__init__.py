"""Training: the loop, losses, optimisers, selection, the run's folder."""
