"""`python -m export.benchmark`: how fast each engine runs an artifact, in paired runs."""
