"""The child process: owns torch, the device and the user's code, and asks the questions."""
