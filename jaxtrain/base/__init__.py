"""Helpers that know nothing of training: errors, config values, files, text, provenance."""
