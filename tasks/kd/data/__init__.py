"""Text: sources, tables, splits and batches."""
