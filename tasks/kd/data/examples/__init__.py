"""Prepared examples: read, put into batches, padded."""
