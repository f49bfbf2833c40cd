"""The decision about a candidate."""
