"""The category of the plug-in's warnings: a filter may name it where there is no pytest."""

from __future__ import annotations


class NnauditWarning(UserWarning):
    """A check warned, or nnaudit has something to say about the target's source."""
