"""Boxes made more exact, of predictions and of labels."""
