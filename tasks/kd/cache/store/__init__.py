"""Where caches are kept: a folder, or a URL with local copies."""
