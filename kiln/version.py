"""The version of Kiln. Packaging reads it from here without importing kiln."""

__version__ = "0.2.0"
