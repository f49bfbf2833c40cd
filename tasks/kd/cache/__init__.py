"""The teacher cache: written once, trained from many times. `format/FORMAT.md` has the format."""
