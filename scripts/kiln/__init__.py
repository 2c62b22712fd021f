"""What the scripts share, one concept a module."""

__version__ = "0.1.0"
