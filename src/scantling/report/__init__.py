"""Predictions made visible: drawn on images (`draw`), and told on one page (`build`, `html`)."""
