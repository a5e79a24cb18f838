"""Prediction in shards: many images a fixed number at a time, each shard a stage that is done once."""
