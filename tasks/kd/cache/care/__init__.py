"""Listing, verifying and clearing a store."""
