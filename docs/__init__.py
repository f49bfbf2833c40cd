"""Pages for readers; those generated from the code are written by `docs.generate`."""
