"""What `check` looks at beyond one record: boxes, images, near duplicates, leaks between splits."""
