"""The untrained network."""
