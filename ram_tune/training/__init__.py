"""A model becomes a trained model."""
