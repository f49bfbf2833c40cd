"""Reading a teacher's outputs back, verified."""
