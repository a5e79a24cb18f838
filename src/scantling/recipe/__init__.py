"""What a run does: its file, what `auto` means, and the recipes that come with the package."""
