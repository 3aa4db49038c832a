"""The optimizer's step."""
