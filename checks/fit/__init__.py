"""What the training can fit."""
