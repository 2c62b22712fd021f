"""The version of a database that is shown, and the thread that follows the tag to the next one.

Who is answering a request keeps the version it began with; the next request gets the new one.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kiln.errors import KilnError
from kiln.explorer.database import TAG, Explorer
from kiln.explorer.filters import Where
from kiln.explorer.matrix import BOX, NO_TIME, Matrix, identity, open_matrix
from kiln.explorer.results import datetime_text

POLL = 5.0  # seconds between looks at the tag
MASKS, TILES = 16, 512  # kept in memory
log = logging.getLogger(__name__)
T = TypeVar("T")


class Kept:
    """The last few values by key; safe to ask from several threads (a value may then be made twice)."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not there."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)
        return value


class Version:
    """A tagged version, open: the table, the matrix, and what is known of the whole."""

    def __init__(self, uri: str, cache: Path) -> None:
        """Open it. Raises ConfigError, StorageError or TransientError."""
        self.db = Explorer(uri)
        self.identity = identity(self.db)
        self.name = f"{self.db.table.version}-{self.identity[:8]}"
        self.matrix: Matrix = open_matrix(self.db, cache)
        self.masks, self.tiles = Kept(MASKS), Kept(TILES)
        self.about = _about(self.db, self.matrix)

    def mask(self, where: Where) -> np.ndarray | None:
        """Which chips the filters leave [n]; None: all. Raises ConfigError."""
        return self.masks.get(where, lambda: self.matrix.mask(where))


def _about(db: Explorer, matrix: Matrix) -> dict[str, Any]:
    """Rows, dimensions, and for each dataset its years, rows, bounds, dates and model."""
    names = {d: s for s, datasets in matrix.spaces.items() for d in datasets}
    datasets = []
    for code, dataset in enumerate(matrix.datasets):
        rows = np.flatnonzero(matrix["dataset"] == code)
        times = matrix["time"][rows]
        times = times[times != NO_TIME]
        kiln = db.about.get(dataset, {})
        datasets.append(
            {
                "name": dataset,
                "years": [int(y) for y in np.unique(matrix["year"][rows]) if y],
                "rows": len(rows),
                "bounds": _bounds(matrix, rows),
                "dates": [datetime_text(int(v)) for v in (times.min(), times.max())] if len(times) else None,
                "model": kiln.get("model"),
                "space": names[dataset],
                "untrained": bool(kiln.get("untrained")),
            }
        )
    example = None
    if len(matrix):
        newest = np.flatnonzero(matrix["year"] == matrix["year"].max())
        example = matrix.ids([int(newest[len(newest) // 2])])[0]
    return {
        "rows": len(matrix),
        "dimensions": matrix.vectors.shape[1],
        "untrained": db.untrained,
        "datasets": datasets,
        "bounds": _bounds(matrix, slice(None)) if len(matrix) else None,
        "example": example,
    }


def _bounds(matrix: Matrix, rows: Any) -> list[float]:
    """West, south, east, north of chips; the whole world's width if one crosses the antimeridian."""
    west, south, east, north = (matrix[n][rows] for n in BOX)
    across = bool((west > east).any())
    return [
        -180.0 if across else float(west.min()), float(south.min()),
        180.0 if across else float(east.max()), float(north.max()),
    ]  # fmt: skip


class Follower:
    """Holds the version that is shown, and brings the next one when the tag moves."""

    def __init__(self, uri: str, cache: Path, poll: float = POLL) -> None:
        """Open the version that is tagged now. Raises what `Version` raises."""
        self.uri, self.cache, self.poll = uri, cache, poll
        self.current = Version(uri, cache)
        self.problem = ""  # why the database cannot be followed at the moment
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="follow-tag")

    def start(self) -> None:
        """Begin to look at the tag."""
        self._thread.start()

    def stop(self) -> None:
        """End; a version that is being opened is left alone."""
        self._end.set()

    def look(self) -> bool:
        """Look at the tag once; whether there is a new version now. Raises KilnError if it cannot be opened."""
        fresh = Explorer(self.uri)
        if identity(fresh) == self.current.identity:
            return False
        self.current = Version(self.uri, self.cache)
        log.info("%s: the tag %s is at version %s now", self.uri, TAG, self.current.name)
        return True

    def _follow(self) -> None:
        while not self._end.wait(self.poll):
            try:
                self.look()
            except KilnError as e:
                if str(e) != self.problem:
                    log.warning("%s; version %s is shown until it can be followed", e, self.current.name)
                self.problem = str(e)
            else:
                self.problem = ""
