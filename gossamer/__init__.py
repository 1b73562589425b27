"""Gossamer: hardware/simulator co-design for sparse accelerators."""

__version__ = "0.1.0"
