"""What is asked of a teacher, or of several."""
