"""A benchmark of the data pipeline: which stage the step waits for, and which setting to change."""
