"""A report of a search, from what it left on disk."""

METRICS = "mAP", "mAP_11", "CP", "CR", "CF1", "OP", "OR", "OF1"
"""What arms may be compared by."""
