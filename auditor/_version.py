"""The version, on its own: whoever needs it needs nothing else of the package."""

__version__ = "0.1.0"
