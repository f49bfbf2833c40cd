"""Writing a teacher's outputs."""
