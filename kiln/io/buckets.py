"""The S3 buckets of known archives: their regions, and whether requests are unsigned or paid by the requester.

Archives register their buckets when `kiln` is imported; this module knows none by name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bucket:
    """An archive's bucket. Requests to it are unsigned, or paid by the requester."""

    name: str
    region: str
    requester_pays: bool = False


_BUCKETS: dict[str, Bucket] = {}


def register_buckets(*buckets: Bucket) -> None:
    """Add buckets; later requests to them are signed and paid accordingly."""
    _BUCKETS.update({bucket.name: bucket for bucket in buckets})


def known_bucket(name: str) -> Bucket | None:
    """Return what is known of a bucket, or None for a private one."""
    return _BUCKETS.get(name)
