"""What tests of all rooms share; ``tests`` is on the path (``import support.programs``)."""
