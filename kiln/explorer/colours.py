"""Colours of embeddings: the first three principal components of unit vectors, as red, green and blue.

The rule `build_index` fits them once and stores them next to the table (`state/<version>-colours.json`), so that every
reader of a version sees the same colours.
"""

import json
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kiln.errors import SourceError
from kiln.explorer.database import VECTOR, Table, vector_space
from kiln.formats.fingerprint import digest
from kiln.io import storage

SAMPLE_CHIPS = 20_000  # chips that the components are fitted to
SHOWN_PERCENTILES = (2, 98)  # of a component: the values that become black and full colour
Vectors = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True)
class Colours:
    """How vectors become colours.

    Attributes:
        mean: Mean of the unit vectors, [D].
        components: Principal components, [3, D].
        low: Values of the components that become black, [3].
        high: Values of the components that become full colour, [3].
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    def rgb(self, vectors: Vectors) -> NDArray[np.uint8]:
        """Return the colours [n, 3] of vectors [n, D]."""
        values = (unit(vectors) - self.mean) @ self.components.T
        span = np.maximum(self.high - self.low, 1e-12)
        return np.asarray((np.clip((values - self.low) / span, 0, 1) * 255).round(), np.uint8)


def unit(vectors: Vectors) -> NDArray[np.float32]:
    """Return vectors [n, D] scaled to length one; zeros stay zeros."""
    wide = np.asarray(vectors, np.float32)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12), np.float32)


def fit_colours(vectors: Vectors) -> Colours:
    """Fit the three components of vectors [n, D] with the largest variance, n >= 1.

    The sign of a component is arbitrary: its largest entry is positive here, so that equal vectors give equal colours.
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
    low, high = np.percentile(centred @ components.T, SHOWN_PERCENTILES, axis=0)
    return Colours(*(a.astype(np.float32) for a in (mean, components, low, high)))


def fit_table(chips: Table) -> Colours | None:
    """Fit the colours of an explorer table to chips evenly spread over its rows; None: it has no rows."""
    rows = chips.count_rows()
    if not rows:
        return None
    step = max(1, rows // SAMPLE_CHIPS)
    sample = chips.take_offsets(list(range(0, rows, step))).select([VECTOR]).to_arrow()
    flat = sample[VECTOR].combine_chunks().flatten().cast(pa.float32())
    return fit_colours(np.asarray(flat).reshape(len(sample), -1))


def colours_uri(db: str, version: int) -> str:
    """Return where the colours of a version are stored."""
    return storage.join(db, "state", f"{version}-colours.json")


def write_colours(chips: Table, db: str, version: int) -> None:
    """Store the colours of a version of the table, unless they are there."""
    uri = colours_uri(db, version)
    if storage.stat(uri) is None:
        datasets = json.loads(chips.schema.metadata[b"kiln"])
        space = digest(vector_space(next(iter(datasets.values()), {})))[:16]
        storage.write_bytes(uri, to_bytes(space, fit_table(chips)))


def to_bytes(space: str, colours: Colours | None) -> bytes:
    """Return JSON: by vector space, mean, components, low and high."""
    content = {}
    if colours is not None:
        content[space] = {f.name: np.round(getattr(colours, f.name).astype(float), 8).tolist() for f in fields(Colours)}
    return (json.dumps(content, sort_keys=True) + "\n").encode()


def read_colours(db: str, version: int) -> Colours | None:
    """Return the colours stored with a version; None: there are none. Raise SourceError for an unreadable file."""
    uri = colours_uri(db, version)
    if storage.stat(uri) is None:
        return None
    try:
        content = json.loads(storage.read_bytes(uri))
        arrays = next(iter(content.values()), None)
        if arrays is None:
            return None
        return Colours(**{name: np.asarray(values, np.float32) for name, values in arrays.items()})
    except (ValueError, TypeError, AttributeError) as e:
        raise SourceError(f"{uri}: expected the colours of a database, got {e}. Build the index again.") from e
