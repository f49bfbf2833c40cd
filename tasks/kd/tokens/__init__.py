"""A model's own tokenizer: its files, checks of them, and encoding with it."""
