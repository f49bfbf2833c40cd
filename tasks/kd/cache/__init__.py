"""The teacher cache: written once, trained from many times. FORMAT.md says what is on disk."""
