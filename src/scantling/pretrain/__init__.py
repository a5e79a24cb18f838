"""Backbones that learn from the data set's own crops before they see labels."""
