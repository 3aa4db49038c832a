"""Checks of train and eval mode."""
