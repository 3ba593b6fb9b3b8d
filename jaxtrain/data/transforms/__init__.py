"""Transforms of one example, or of a whole batch."""
