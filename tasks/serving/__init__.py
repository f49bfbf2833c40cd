"""What travels with a registered student."""
