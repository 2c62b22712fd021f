"""Stable shards: the shard of a unit hardly depends on which other units there are.

The units of a merge partition are the leaves of a binary trie over the bits of their digests. A subtree of at most
`max_units` units is a shard. A unit that is added or removed changes its own shard, splits it in two, or joins two: at
most two shards either way. The order of the units has no effect.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from kiln.formats.fingerprint import shard_name

BITS = 64  # of a unit's digest; units with equal bits share a shard


def position(unit: str) -> int:
    """Return a unit's place in the trie: the first 64 bits of its sha256."""
    return int.from_bytes(hashlib.sha256(unit.encode()).digest()[: BITS // 8], "big")


def stable_shards(units: Iterable[str], nominal: int) -> Iterator[tuple[str, list[str]]]:
    """Yield the names of the shards and their sorted units.

    Args:
        units: Ids of the units; repeated ids count once.
        nominal: Mean number of units of a shard. No shard has more than 4/3 of it: halving leaves between half of the
            maximum and the maximum, which is `nominal` on average.

    Yields:
        Name and units. The name has the place in the trie and the number of units, and ends in a digest of the units.
    """
    placed = sorted((position(unit), unit) for unit in set(units))
    yield from _split(placed, 0, 0, max(1, nominal * 4 // 3))


def _split(placed: list[tuple[int, str]], prefix: int, depth: int, max_units: int) -> Iterator[tuple[str, list[str]]]:
    if not placed:
        return
    if len(placed) <= max_units or depth == BITS:
        units = sorted(unit for _, unit in placed)
        place = f"{prefix:0{max(1, -(-depth // 4))}x}.{depth}"
        yield shard_name(place, units), units
        return
    second_half = (prefix << 1 | 1) << (BITS - 1 - depth)  # its first position
    middle = bisect_left(placed, (second_half, ""))
    yield from _split(placed[:middle], prefix << 1, depth + 1, max_units)
    yield from _split(placed[middle:], prefix << 1 | 1, depth + 1, max_units)
