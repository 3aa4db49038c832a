"""Checks of the loss function and what it is given."""
