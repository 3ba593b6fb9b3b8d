"""Examines experiments, compiled programs and runs: layouts, memory, collectives, replay, data throughput."""
