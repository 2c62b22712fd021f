"""Kiln: Clay embeddings of whole Earth-observation archives."""

from kiln.archives.registry import archives as _archives
from kiln.version import __version__ as __version__

_archives()  # registers the archives and their buckets
