"""Gradients and what they reach."""
