"""The code that travels with a registered student."""
