"""Kiln: Clay embeddings of whole Earth-observation archives."""

from kiln.archives.registry import archives as _archives

__version__ = "0.1.0"

_archives()  # registers the archives and their buckets
