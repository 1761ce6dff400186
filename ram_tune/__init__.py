"""ram_tune: which part of a recurrent-attention multi-label model earns its keep, and which settings are best."""

__version__ = "0.1.0"
