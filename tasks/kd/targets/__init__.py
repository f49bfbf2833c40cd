"""The teacher's outputs that the levels need, from the cache or from the teacher itself."""
