"""Reading them back, verified."""
