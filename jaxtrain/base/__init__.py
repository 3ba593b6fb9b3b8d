"""What knows nothing of training: errors, config values, files, text, provenance."""
