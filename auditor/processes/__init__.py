"""The parent side of the child processes: starts them, hears them, protects the files. No torch."""
