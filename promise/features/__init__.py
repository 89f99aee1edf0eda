"""Features of the frozen encoder, cached on disk."""
