"""Prepared examples: read, grouped into batches and padded."""
