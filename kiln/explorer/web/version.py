"""A tagged version of the database, opened: everything that the API answers comes from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kiln.explorer import results
from kiln.explorer.chips import UnknownChipError, time_text
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.filters import ChipFilter
from kiln.explorer.footprints import BOXES_ONLY, read_footprints
from kiln.explorer.matrix import BOX, NO_TIME, Matrix, moment
from kiln.explorer.matrix_cache import open_matrix
from kiln.explorer.search import Query, SearchResult, search
from kiln.explorer.web import map_tiles
from kiln.explorer.web.lru_cache import LruCache
from kiln.formats.bounding_box import Bounds
from kiln.io import storage

MAX_OUTLINES = 20_000
MAX_MASKS, MAX_TILES = 16, 512  # in memory
Mask = NDArray[np.bool_]


class Version:
    """A tagged version: its table, its matrix and a summary."""

    def __init__(self, uri: str, cache: Path) -> None:
        """Open the version that is tagged now.

        Args:
            uri: Path or address of the database.
            cache: Folder of the matrix.

        Raises:
            ConfigError: There is no finished database.
            StorageError: The cache cannot be written.
            TransientError: The database does not answer.
        """
        self.db = ExplorerDatabase(uri)
        self.identity = self.db.identity()
        self.name = f"{self.db.table.version}-{self.identity[:8]}"
        self.matrix: Matrix = open_matrix(self.db, cache)
        self.summary = _summary(self.db, self.matrix)
        self._masks: LruCache[Mask | None] = LruCache(MAX_MASKS)
        self._tiles: LruCache[bytes] = LruCache(MAX_TILES)

    def search(self, query: Query) -> SearchResult:
        """Return the answer to a query. Raises ConfigError or TransientError."""
        return search(self.db, query, self.matrix, self._mask(query.chip_filter))

    def export(self, query: Query, file_format: str, embeddings: bool) -> bytes:
        """Return the results of a search as a file, GeoJSON or GeoParquet. Raises ConfigError or TransientError."""
        result = self.search(query)
        footprints = read_footprints(self.db, (hit.chip for hit in result.hits))
        vectors = result.vectors if embeddings else None
        if file_format == "geojson":
            return to_json(results.as_geojson(result.hits, footprints, vectors=vectors))
        with storage.temporary_folder() as folder:
            path = Path(folder) / "similar.parquet"
            results.write_geoparquet(path, result.hits, footprints, self.db.metadata, vectors)
            return path.read_bytes()

    def chip(self, chip_id: str) -> dict[str, Any]:
        """Return the facts of a chip. Raises UnknownChipError if the database does not have it."""
        return self.matrix.facts(self.matrix.rows_of([chip_id]))[0].to_json()

    def chip_at(self, lon: float, lat: float, where: ChipFilter) -> dict[str, Any]:
        """Return the facts of the chip that covers a point. Raises UnknownChipError if none does."""
        if not len(self.matrix):
            raise UnknownChipError("the database is empty: there is no chip")
        return self.matrix.facts([self.matrix.at(lon, lat, self._mask(where))])[0].to_json()

    def outlines(self, bbox: Bounds, where: ChipFilter) -> dict[str, Any]:
        """Return the boxes of the chips within a box as GeoJSON; `{"too_many": n}` above MAX_OUTLINES."""
        rows = np.empty(0, np.int64)
        if len(self.matrix):
            rows = self.matrix.in_view(bbox, self._mask(where))
        return {"too_many": len(rows)} if len(rows) > MAX_OUTLINES else results.outlines(self.matrix, rows)

    def tile(self, layer: str, z: int, x: int, y: int, where: ChipFilter) -> bytes:
        """Return a map tile as PNG. Raises ConfigError for a tile that is not on the map."""

        def draw() -> bytes:
            if not len(self.matrix):
                return map_tiles.empty_tile()
            return map_tiles.draw_tile(self.matrix, layer, z, x, y, self._mask(where))

        return self._tiles.get((layer, z, x, y, where), draw)

    def _mask(self, where: ChipFilter) -> Mask | None:
        """Return which chips match a filter [n]; None: all. Raises ConfigError."""
        return self._masks.get(where, lambda: where.mask(self.matrix))


def to_json(value: Any) -> bytes:
    """Return a value as compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _summary(db: ExplorerDatabase, matrix: Matrix) -> dict[str, Any]:
    """Return rows, dimensions, bounds, an example and the note of exports; years, rows, bounds, ... of each dataset."""
    datasets = []
    for code, dataset in enumerate(matrix.datasets):
        rows = np.flatnonzero(matrix["dataset"] == code)
        times = matrix["time"][rows]
        times = times[times != NO_TIME]
        metadata = db.metadata.get(dataset, {})
        datasets.append(
            {
                "name": dataset,
                "years": [int(y) for y in np.unique(matrix["year"][rows]) if y],
                "rows": len(rows),
                "bounds": _bounds(matrix, rows),
                "dates": [time_text(moment(int(v))) for v in (times.min(), times.max())] if len(times) else None,
                "model": metadata.get("model"),
                "untrained": bool(metadata.get("untrained")),
            }
        )
    return {
        "rows": len(matrix),
        "dimensions": matrix.vectors.shape[1],
        "untrained": db.untrained,
        "export_note": "" if db.has_footprints else BOXES_ONLY,
        "datasets": datasets,
        "bounds": _bounds(matrix, np.arange(len(matrix))) if len(matrix) else None,
        "example": _example(matrix) if len(matrix) else None,
    }


def _example(matrix: Matrix) -> str:
    """Return the id of a chip of the newest year."""
    newest = np.flatnonzero(matrix["year"] == matrix["year"].max())
    return matrix.ids([int(newest[len(newest) // 2])])[0]


def _bounds(matrix: Matrix, rows: Sequence[int] | NDArray[np.int64]) -> list[float]:
    """Return west, south, east, north of chips; -180 to 180 if a chip crosses the antimeridian."""
    west, south, east, north = (matrix[name][rows] for name in BOX)
    across = bool((west > east).any())
    return [
        -180.0 if across else float(west.min()), float(south.min()),
        180.0 if across else float(east.max()), float(north.max()),
    ]  # fmt: skip
