"""Figures, pictures and the report."""
