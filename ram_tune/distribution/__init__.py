"""A run inside Ray Train."""
