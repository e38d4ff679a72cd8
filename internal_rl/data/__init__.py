"""Datasets of expert episodes, and how they are cut into batches."""
