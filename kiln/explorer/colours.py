"""Colours of embeddings: the first three principal components of unit vectors, as red, green and blue.

Fitted once in the index rule and stored beside the table (`state/<version>-colours.json`), so that every reader of a
version sees the same colours. Vectors of different spaces (weights, kind of embedding) are fitted apart.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from kiln.errors import SourceError
from kiln.explorer import database
from kiln.explorer.database import Table
from kiln.formats.fingerprint import digest
from kiln.io import storage

SAMPLE = 20_000  # chips that the components are fitted to
SHOWN = (2, 98)  # percentiles of a component that become black and full colour


@dataclass(frozen=True)
class Colours:
    """mean [D], components [3, D], low [3] and high [3]: a chip's values at `low` are dark, at `high` bright."""

    mean: np.ndarray
    components: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def rgb(self, vectors: np.ndarray) -> np.ndarray:
        """Colours [n, 3] uint8 of vectors [n, D]."""
        values = (unit(vectors) - self.mean) @ self.components.T
        span = np.maximum(self.high - self.low, 1e-12)
        return (np.clip((values - self.low) / span, 0, 1) * 255).round().astype(np.uint8)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, D] of length one, float32; zeros stay zeros."""
    wide = np.asarray(vectors, np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)


def fit_colours(vectors: np.ndarray) -> Colours:
    """The three components of vectors [n, D] that vary most, n >= 1, and their usual ranges.

    A component's sign is free: its largest entry is positive here, so that equal vectors give equal colours.
    """
    points = unit(vectors).astype(np.float64)
    mean = points.mean(axis=0)
    centred = points - mean
    values, axes = np.linalg.eigh(centred.T @ centred)
    count = min(3, len(values))
    components = np.zeros((3, len(mean)))
    components[:count] = axes[:, np.argsort(-values, kind="stable")[:count]].T
    largest = np.abs(components).argmax(axis=1)
    components *= np.where(components[np.arange(3), largest] < 0, -1, 1)[:, None]
    low, high = np.percentile(centred @ components.T, SHOWN, axis=0)
    return Colours(*(a.astype(np.float32) for a in (mean, components, low, high)))


def space_of(kiln: Mapping[str, Any]) -> str:
    """What names the space of a dataset's vectors: only vectors of one space are compared or coloured together."""
    return digest(database.space(dict(kiln)))[:16]


def spaces(about: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The datasets of each space."""
    found: dict[str, list[str]] = {}
    for dataset in sorted(about):
        found.setdefault(space_of(about[dataset]), []).append(dataset)
    return found


def fit_table(chips: Table, about: Mapping[str, Mapping[str, Any]]) -> dict[str, Colours]:
    """The colours of every space of an explorer table, from chips evenly spread over its rows."""
    rows = chips.count_rows()
    if not rows:
        return {}
    step = max(1, rows // SAMPLE)
    some = chips.take_offsets(list(range(0, rows, step))).select(["dataset", database.VECTOR]).to_arrow()
    names = np.asarray(some["dataset"].to_pylist())
    flat = some[database.VECTOR].combine_chunks().flatten().cast(pa.float32())
    vectors = np.asarray(flat).reshape(len(some), -1)
    fitted = {}
    for space, datasets in spaces(about).items():
        mine = np.isin(names, datasets)
        if mine.any():
            fitted[space] = fit_colours(vectors[mine])
    return fitted


def name(db: str, version: int) -> str:
    """Where the colours of a version are kept."""
    return storage.join(db, "state", f"{version}-colours.json")


def to_bytes(fitted: Mapping[str, Colours]) -> bytes:
    """JSON: by space, mean, components, low and high."""
    plain = {
        space: {n: np.round(getattr(c, n).astype(float), 8).tolist() for n in Colours.__dataclass_fields__}
        for space, c in fitted.items()
    }
    return (json.dumps(plain, sort_keys=True) + "\n").encode()


def read(db: str, version: int) -> dict[str, Colours] | None:
    """The colours stored with a version; None where there are none. Raises SourceError for a file that is none."""
    uri = name(db, version)
    if storage.stat(uri) is None:
        return None
    try:
        told = json.loads(storage.read_bytes(uri))
        return {s: Colours(**{n: np.asarray(v, np.float32) for n, v in c.items()}) for s, c in told.items()}
    except (ValueError, TypeError, AttributeError) as e:
        raise SourceError(f"{uri}: not the colours of a database ({e}); build the index again") from e
