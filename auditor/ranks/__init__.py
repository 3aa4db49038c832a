"""Several processes of one training: what each of them does, seen from within it."""
