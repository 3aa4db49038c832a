"""Callbacks that audit a script before its own framework trains it."""
