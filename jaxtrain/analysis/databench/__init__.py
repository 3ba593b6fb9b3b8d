"""Benchmark of the data pipeline: which stage the step waits for, and which value to change."""
