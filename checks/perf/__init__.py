"""What training costs: waiting, memory, precision."""
