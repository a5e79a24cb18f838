"""Predictions of any detectors -> better predictions."""
