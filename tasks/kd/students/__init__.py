"""A student's start: its shape and its first weights."""
