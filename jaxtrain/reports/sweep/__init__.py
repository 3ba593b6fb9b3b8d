"""Sweeps after the fact: reading a folder (`read`), its table (`text`), its findings and its page (`report`)."""
