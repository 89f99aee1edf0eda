"""What every part may use: errors, files, settings, device, memory, progress."""
