"""The label audit: which annotations are likely wrong, why, and their repair."""
