"""The Python API of an explorer database: `kiln.open_explorer`."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln.errors import ConfigError
from kiln.explorer import results
from kiln.explorer.chips import ChipFacts
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.filters import MAX_VERTICES, ChipFilter
from kiln.explorer.footprints import Footprints, read_footprints
from kiln.explorer.matrix import Matrix
from kiln.explorer.matrix_cache import default_cache, open_matrix
from kiln.explorer.search import Query, SearchResult, needs_matrix, search
from kiln.formats.area import parse_area
from kiln.formats.bounding_box import check_bounding_box

if TYPE_CHECKING:
    import geopandas as gpd

log = logging.getLogger(__name__)


def open_explorer(uri: str | Path, cache: str | Path | None = None) -> "Explorer":
    """Open an explorer database.

    Args:
        uri: Path or s3:// URI, such as `results/sample/explorer`.
        cache: Folder for the matrix of the database (about 2.2 kB a chip), which searches by method `linear`, by area
            or with `apart_km` build once; None: `$XDG_CACHE_HOME/kiln/explorer`.

    Returns:
        The version that is tagged now. Later versions of the database do not change it.

    Raises:
        ConfigError: There is no finished explorer database.
    """
    return Explorer(ExplorerDatabase(str(uri)), Path(cache) if cache else default_cache())


class Explorer:
    """A version of an explorer database, open for searches. Use `open_explorer` to get one.

    Attributes:
        database: The tagged version of the table.
        cache: The folder of its matrix.
    """

    def __init__(self, database: ExplorerDatabase, cache: Path) -> None:
        self.database, self.cache = database, cache

    def __len__(self) -> int:
        return self.database.count()

    def __repr__(self) -> str:
        return f"Explorer({self.database.uri!r}: {len(self)} chips of {', '.join(self.datasets) or 'no dataset'})"

    @property
    def datasets(self) -> list[str]:
        """Names of the datasets, sorted."""
        return self.database.datasets

    @property
    def metadata(self) -> Mapping[str, Any]:
        """How the vectors were computed, by dataset: model, weights, kind, dimensions, chip lattice."""
        return self.database.metadata

    @cached_property
    def matrix(self) -> Matrix:
        """The vectors and facts of every chip; the first use builds it in the cache folder."""
        return open_matrix(self.database, self.cache)

    def chip(self, chip_id: str) -> ChipFacts:
        """Return the facts of a chip. Raise UnknownChipError (a ConfigError) if the database does not have it."""
        return self.database.chips([chip_id])[0][0]

    def footprints(self, chips: Iterable[ChipFacts]) -> Footprints:
        """Return the footprints of chips of the database, or their boxes with a warning if it has none."""
        return read_footprints(self.database, chips)

    def find(self, query: Query) -> SearchResult:
        """Answer a query; open the matrix only if the query needs it. Raise what `kiln.explorer.search` raises."""
        matrix = self.matrix if needs_matrix(query) or "matrix" in self.__dict__ else None
        return search(self.database, query, matrix)

    def search(
        self,
        likes: str | Iterable[str] = (),
        dislikes: str | Iterable[str] = (),
        at: tuple[float, float] | None = None,
        *,
        bbox: Sequence[float] | None = None,
        area: Any = None,
        years: int | Iterable[int] | None = None,
        datasets: str | Iterable[str] | None = None,
        first_day: date | None = None,
        last_day: date | None = None,
        max_nodata: float | None = None,
        max_cloud: float | None = None,
        k: int = 48,
        method: str = "mean",
        apart_km: float = 0.0,
    ) -> "gpd.GeoDataFrame":
        """Return the chips most like some chips or a place.

        Example:
            >>> explorer = kiln.open_explorer("results/sample/explorer")
            >>> fields = explorer.search(at=(-95.6, 43.5), years=2021, k=10)
            >>> more = explorer.search(likes=fields.chip_id[:3], dislikes=fields.chip_id[9:])

        Args:
            likes: Ids of chips that the results should be like.
            dislikes: Ids of chips that the results should not be like.
            at: Longitude and latitude in degrees; the newest chip that covers the point is a like.
            bbox: Results have their centre in this box: west, south, east, north in degrees; west > east crosses the
                antimeridian.
            area: Results have their centre in this area in degrees: a GeoJSON object or a shapely geometry.
            years: Results are of these years.
            datasets: Results are of these datasets.
            first_day: Results were acquired on this day or later.
            last_day: Results were acquired on this day or earlier.
            max_nodata: Maximum fraction of pixels without data; an unknown fraction passes.
            max_cloud: Maximum fraction of cloudy pixels; an unknown fraction passes.
            k: Number of results, at most 10 000.
            method: `mean`, the cosine to the mean of the likes less half the mean of the dislikes; or `linear`, a
                classifier of at least 3 likes against at least 3 dislikes.
            apart_km: Minimum distance between results in km.

        Returns:
            At most k rows, best first, without the marked chips. Geometry: the chips' footprints, EPSG:4326. Columns:
            chip_id, rank (from 1), dataset, item_id, source, year, datetime (UTC), nodata_fraction, cloud_fraction,
            similarity (cosine for `mean`; about 1 for a like and -1 for a dislike for `linear`), lon and lat of the
            centre, and footprint: `exact`, or `box` if the database has no footprints and the geometry is the box
            around one.

        Raises:
            ConfigError: An unknown chip or dataset, a place that no chip covers, or an argument out of range.
            TransientError: The database does not answer.
        """
        if at is not None and len(at) != 2:
            raise ConfigError(f"at: expected longitude and latitude, got {at}.")
        query = Query(
            likes=_strings(likes),
            dislikes=_strings(dislikes),
            at=None if at is None else (float(at[0]), float(at[1])),
            method=method,
            k=k,
            apart_km=apart_km,
            chip_filter=ChipFilter(
                datasets=() if datasets is None else _strings(datasets),
                years=(years,) if isinstance(years, int) else tuple(int(y) for y in (() if years is None else years)),
                first_day=first_day,
                last_day=last_day,
                bbox=None if bbox is None else check_bounding_box(bbox),
                area=None if area is None else parse_area(getattr(area, "__geo_interface__", area), MAX_VERTICES),
                max_nodata=max_nodata,
                max_cloud=max_cloud,
            ),
        )
        result = self.find(query)
        if result.note:
            log.info("%s", result.note)
        return results.to_geodataframe(result.hits, self.footprints(hit.chip for hit in result.hits))


def _strings(values: str | Iterable[str]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else tuple(values)
