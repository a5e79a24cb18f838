"""What a person typed, read strictly and checked; nothing here needs torch."""
