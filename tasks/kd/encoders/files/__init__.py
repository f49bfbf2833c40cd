"""The files of a model's folder, looked at without loading it."""
