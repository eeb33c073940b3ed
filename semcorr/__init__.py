"""Semantic correspondence with visual foundation models.

Importing this package does nothing and loads nothing heavy: PyTorch is imported by the modules that compute with it.
"""

__version__ = "0.1.0"
