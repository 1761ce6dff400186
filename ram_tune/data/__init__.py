"""A dataset on disk becomes batches."""
