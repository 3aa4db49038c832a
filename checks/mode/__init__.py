"""Modes, evaluation, checkpoints."""
