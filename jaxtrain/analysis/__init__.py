"""What can be known about an experiment or a compiled program without training it."""
