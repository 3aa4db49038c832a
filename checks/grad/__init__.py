"""Checks of gradients and the optimizer's reach."""
