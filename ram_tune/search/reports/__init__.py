"""A report of a search, from what it left on disk."""
