"""What training leaves behind: generalisation, transfer, and how it is measured."""
