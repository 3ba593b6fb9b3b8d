"""Sources: examples that are read by index."""
