"""Kiln's version; packaging reads it from here without importing kiln."""

__version__ = "0.1.0"
