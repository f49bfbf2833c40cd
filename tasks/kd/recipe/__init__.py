"""What a person writes: typed sections, what must hold between them, and their files."""
