"""Fitting on fixed rows, what a loss can reach, and what a network is made of."""
