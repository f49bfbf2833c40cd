"""Where teacher and student are compared."""
