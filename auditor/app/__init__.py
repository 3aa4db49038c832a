"""The parent process: command line, pytest, and what starts and outlives a child. No torch here."""
