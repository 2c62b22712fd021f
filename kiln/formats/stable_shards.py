"""Stable shards of a set of units: which job does a unit hardly depends on what else there is.

The units of a merge partition are the leaves of a binary trie over the bits of their digests; a subtree of at most
`most` units is a shard. A unit added or removed changes its own shard, or splits it in two, or joins two: at most two
shards either way. Nothing depends on the order in which units come.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from kiln.formats.fingerprint import digest

BITS = 64  # of a unit's digest; equal ones share a shard


def position(unit: str) -> int:
    """Where a unit lies in the trie: the first 64 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(unit.encode()).digest()[: BITS // 8], "big")


def stable_shards(units: Iterable[str], nominal: int) -> Iterator[tuple[str, list[str]]]:
    """Names and sorted units of the shards: about `nominal` units each, never more than twice that.

    Halving leaves between half of the largest and the largest, so a largest of 4/3 `nominal` gives `nominal` on
    average. A name tells the place in the trie and the count, and ends in a digest of the units.
    """
    placed = sorted((position(u), u) for u in set(units))
    yield from _split(placed, 0, 0, max(1, nominal * 4 // 3))


def _split(placed: list[tuple[int, str]], prefix: int, depth: int, most: int) -> Iterator[tuple[str, list[str]]]:
    if not placed:
        return
    if len(placed) <= most or depth == BITS:
        units = sorted(u for _, u in placed)
        place = f"{prefix:0{max(1, -(-depth // 4))}x}.{depth}"
        yield f"{place}-{len(units):03d}-{digest(units)[:8]}", units
        return
    ones = (prefix << 1 | 1) << (BITS - 1 - depth)  # where the second half begins, in order of position
    middle = bisect_left(placed, (ones, ""))
    yield from _split(placed[:middle], prefix << 1, depth + 1, most)
    yield from _split(placed[middle:], prefix << 1 | 1, depth + 1, most)
