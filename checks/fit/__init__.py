"""Checks of what training on subsets shows."""
