"""Checks of the data and its loader."""
