"""Networks trained with MatConvNet: reading their .mat files, and their weights in this project's networks."""
