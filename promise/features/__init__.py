"""Features of the frozen encoder, stored on disk."""
