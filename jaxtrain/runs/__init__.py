"""The files of a run: its folder, checkpoints, metrics and events; and its output while it trains."""
