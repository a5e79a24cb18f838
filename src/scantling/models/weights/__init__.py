"""Weights of other projects: how their names and layouts become ours."""
