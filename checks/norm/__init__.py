"""Checks of normalisation layers."""
