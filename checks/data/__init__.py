"""Data and how it arrives."""
