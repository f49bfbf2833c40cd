"""A model's own tokenizer: its files, what is wrong with them, and encoding with it."""
