"""Checks of seeds and reproducibility."""
