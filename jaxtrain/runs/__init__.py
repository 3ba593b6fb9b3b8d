"""What a run keeps: its folder, checkpoints, metrics and events; and what it prints while it trains."""
