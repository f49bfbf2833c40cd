"""WHAT is done: stage programs, the library they call, versioning and the registry."""
