"""Benchmark of the chain from records to the step."""
