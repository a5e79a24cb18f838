"""Pure functions on tensors and arrays: boxes, masks, suppression. No classes, no state, no file access."""
