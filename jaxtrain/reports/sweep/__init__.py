"""Sweeps after the fact: reading a sweep's folder, its table, and its page."""
