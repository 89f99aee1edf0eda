"""Process-level services without domain knowledge: errors, files, settings, device, memory, progress."""
