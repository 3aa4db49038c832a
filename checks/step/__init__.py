"""What one step of the optimizer does: gradients, order, rate, size."""
