"""What is kept of a run: its folder, checkpoints, metrics and events."""
