"""Damage to files and to JSON values, by seed."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

DEEP = "@deep@"  # stands for a value that Python's own writer could not nest
WRONG_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2.5, 10**30, 1e308, float("inf")),
    *("", "x", "../../x", "\0", "\ud800", "é" * 20_000, DEEP, [], {}, [[]], ["x"], {"x": 1}),
)


def damage_bytes(rng: Random, data: bytes) -> bytes:
    """Return other bytes: flipped, zeroed, cut, inserted, deleted, repeated or swapped."""
    while True:
        damaged = rng.choice(BYTE_MUTATIONS)(rng, data)
        if damaged != data:
            return damaged


def _flip_bit(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_bytes(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(2, 30)):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def _run(rng: Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 4, 64, 1024)))


def _overwrite(rng: Random, data: bytes) -> bytes:
    start, end = _run(rng, data)
    return data[:start] + bytes([rng.choice((0, 255))]) * (end - start) + data[end:]


def _cut(rng: Random, data: bytes) -> bytes:
    return data[: rng.choice((rng.randrange(len(data)), rng.randrange(min(32, len(data))), len(data) - 1))]


def _delete(rng: Random, data: bytes) -> bytes:
    start, end = _run(rng, data)
    return data[:start] + data[end:]


def _insert(rng: Random, data: bytes) -> bytes:
    start, end = _run(rng, data)
    return data[:start] + rng.randbytes(end - start) + data[start:]


def _repeat(rng: Random, data: bytes) -> bytes:
    start, end = _run(rng, data)
    return data[:end] + data[start:]


def _swap(rng: Random, data: bytes) -> bytes:
    middle = rng.randrange(len(data))
    return data[middle:] + data[:middle]


BYTE_MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    *(_flip_bit, _flip_bit, _flip_bytes, _overwrite, _overwrite, _cut, _cut, _delete, _insert, _repeat, _swap),
)


def damage_json(rng: Random, value: Any) -> bytes:
    """Return the JSON text of a value of which one part, at any depth, is left out, renamed or another one."""
    value = json.loads(json.dumps(value))
    places = [(container, key) for container in _containers(value) for key in _keys(container)]
    container, key = rng.choice(places)
    action = rng.choice(("delete", "replace", "replace", "rename", "nest"))
    if action == "delete":
        del container[key]
    elif action == "rename" and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif action == "nest":
        container[key] = [container[key]]
    else:
        container[key] = rng.choice(WRONG_VALUES)
    return as_text(value).encode()


def as_text(value: Any) -> str:
    """Return a value as JSON. `DEEP` in it becomes 100 000 lists in each other."""
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)


def _containers(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [value] if isinstance(value, dict | list) and value else []
    return own + [container for child in children for container in _containers(child)]


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, dict) else list(range(len(container)))
