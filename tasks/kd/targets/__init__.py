"""What the levels ask of a teacher, from the cache or from the teacher itself."""
