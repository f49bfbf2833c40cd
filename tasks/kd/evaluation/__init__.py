"""The evaluation: figures, plots and the report."""
