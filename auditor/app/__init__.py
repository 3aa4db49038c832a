"""The command line and pytest: what users call, and what they are shown. No torch here."""
