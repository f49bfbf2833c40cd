"""A teacher, or several as one, and what its answers are worth."""
