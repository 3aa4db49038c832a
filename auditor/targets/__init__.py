"""What the user hands over, and how its batches, inputs and metrics are read."""
