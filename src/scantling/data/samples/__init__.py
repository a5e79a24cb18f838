"""From records to batches: samples, what happens to them, and how they are loaded."""
