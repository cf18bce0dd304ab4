"""Errors, settings, numbers, paths, files and randomness; nothing here depends on training."""
