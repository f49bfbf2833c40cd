"""The format of a cache on disk, as FORMAT.md specifies it."""
