"""Sources: examples, each read by its index."""
