"""What a cache is on disk: FORMAT.md, in code."""
