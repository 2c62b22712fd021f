"""Searching a STAC API: every item of an area, or an error, never some of them.

pystac-client asks and turns the pages; what it lets pass is checked here: a page that is none, pages without end, fewer
items than the server says there are.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin

import pystac
import requests
import shapely
from pystac.link import Link
from pystac_client import Client
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import DoesNotConformTo
from shapely.geometry import mapping, shape
from shapely.geometry.base import BaseGeometry
from urllib3 import Retry

from kiln.errors import ConfigError, SourceError, TransientError
from kiln.io import storage

PAGE = 100  # items; a page of a hundred is some 3 MB, and gateways cut off at 6 to 10
POSITIONS = 2000  # of the polygons that are asked for together
RETRIES = 6  # of a request
BACKOFF = 1.0  # seconds before the second retry, twice as many before each one after
LONGEST_WAIT = 300  # seconds, whatever the server's Retry-After says
REFUSED = (400, 401, 403, 404, 405, 413, 414, 422)  # what stays so on the next try
log = logging.getLogger(__name__)


def box(west: float, south: float, east: float, north: float) -> BaseGeometry:
    """A bounding box in degrees as a geometry; with west > east it crosses the antimeridian, and is cut there."""
    if west <= east:
        return shapely.box(west, south, east, north)
    return shapely.union_all([shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)])


def read_area(uri: str) -> BaseGeometry:
    """The union of the geometries of a GeoJSON file, in degrees. Raises ConfigError for what is none."""
    try:
        said = json.loads(storage.read_bytes(uri))
    except SourceError as e:
        raise ConfigError(f"area {e}") from e
    except ValueError as e:
        raise ConfigError(f"area {uri}: not JSON ({e}); want GeoJSON") from e
    try:
        features = said["features"] if said["type"] == "FeatureCollection" else [said]
        found = [f["geometry"] if f["type"] == "Feature" else f for f in features]
        union = shapely.union_all([shapely.make_valid(shape(g)) for g in found if g is not None])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, shapely.errors.ShapelyError) as e:
        raise ConfigError(f"area {uri}: no GeoJSON ({type(e).__name__}: {e})") from e
    if union.is_empty:
        raise ConfigError(f"area {uri}: it has no geometry")
    west, south, east, north = union.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise ConfigError(
            f"area {uri}: it spans {west:g}, {south:g} to {east:g}, {north:g}; want degrees of longitude and latitude,"
            " cut at the antimeridian"
        )
    return union


def questions(region: BaseGeometry, most: int = POSITIONS) -> Iterator[BaseGeometry]:
    """The parts of a region, together as long as they have no more than `most` positions and are of one kind."""
    together: list[BaseGeometry] = []
    for part in sorted(getattr(region, "geoms", [region]), key=lambda g: (g.geom_type, g.bounds)):
        size = shapely.get_num_coordinates([*together, part]).sum()
        if together and (size > most or part.geom_type != together[0].geom_type):
            yield shapely.union_all(together)
            together = []
        together.append(part)
    yield shapely.union_all(together)


def search(
    url: str,
    collection: str,
    *,
    region: BaseGeometry | None = None,
    dates: str | None = None,
    max_cloud: float | None = None,
    page_size: int = PAGE,
    backoff: float = BACKOFF,
) -> Iterator[dict[str, Any]]:
    """Every item of a collection that meets a region, within dates and up to a cloud cover, as the API has it.

    An item that several parts of the region meet comes once for each. Cloud cover is asked for where the API knows
    the query extension. Raises ConfigError for what is no STAC API or what it refuses, TransientError for a page
    that stays away after `RETRIES` tries and for fewer items than the API says there are.
    """
    io = PagingIO(backoff)
    with _named(url):
        try:
            client = Client.open(url, stac_io=io, timeout=storage.http.TIMEOUT_S)
        except (pystac.STACError, ClientTypeError, KeyError, TypeError, AttributeError, ValueError) as e:
            raise ConfigError(f"{url}: no landing page of a STAC API ({type(e).__name__}: {e})") from e
    query = {"eo:cloud_cover": {"lte": max_cloud}} if max_cloud is not None and client.conforms_to("QUERY") else None
    for part in [None] if region is None else questions(region):
        with _named(url):
            try:
                asked = client.search(
                    collections=[collection],
                    intersects=None if part is None else mapping(part),
                    datetime=dates,
                    query=query,
                    limit=page_size,
                )
            except DoesNotConformTo as e:
                raise ConfigError(f"{url}: a STAC catalogue that cannot be searched ({e})") from e
            yield from _all(url, io.get_pages(asked.url, asked.method, asked.get_parameters()))


def _all(url: str, pages: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The items of all pages. Raises TransientError if they are fewer than the server says, or come again and again."""
    seen: set[str] = set()
    matched = 0
    for n, page in enumerate(pages, 1):
        told = (
            page.get("numberMatched"),
            *((page.get(k) or {}).get("matched") for k in ("context", "search:metadata")),
        )
        matched = max([matched, *(t for t in told if isinstance(t, int))])
        ids = [f.get("id") if isinstance(f, dict) else None for f in page["features"]]
        if not all(isinstance(i, str) for i in ids):
            raise SourceError(f"{url}: page {n} of the answer has an item without an id")
        if ids and seen.issuperset(ids):
            raise TransientError(f"{url}: page {n} of the answer repeats what came before; try again later")
        seen.update(ids)
        log.debug("%s: page %d, %d of %d items", url, n, len(seen), matched)
        yield from page["features"]
    if len(seen) < matched:
        raise TransientError(f"{url}: it tells of {matched} items and gave {len(seen)}; try again later")


class PagingIO(StacApiIO):
    """pystac-client's requests with patience, and pages that end where the server says so, not where one is odd."""

    def __init__(self, backoff: float) -> None:
        patience = Retry(
            RETRIES,
            status_forcelist=storage.store.TRANSIENT_STATUS,
            allowed_methods=None,  # a search by POST changes nothing
            backoff_factor=backoff,
            retry_after_max=LONGEST_WAIT,
            raise_on_status=False,
        )
        super().__init__(timeout=storage.http.TIMEOUT_S, max_retries=patience)

    def request(self, *args: Any, **kwargs: Any) -> str:
        """The text of an answer; one whose connection broke in the middle, which urllib3 lets pass, is asked again."""
        for _ in range(RETRIES):
            try:
                return super().request(*args, **kwargs)
            except APIError as e:
                if not isinstance(e.__context__, requests.exceptions.ChunkedEncodingError):
                    raise
                log.info("%s; once more", e)
        return super().request(*args, **kwargs)

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """The pages of an answer, also behind an empty one. Raises TransientError for a page that is none."""
        page = self.read_json(url, method=method, parameters=parameters)
        while True:
            if not isinstance(page, dict) or not isinstance(page.get("features"), list):
                raise TransientError(f"{url}: not a page of items: {json.dumps(page)[:200]}; try again later")
            yield page
            links = [link for link in page.get("links") or [] if link.get("rel") == "next" and link.get("href")]
            if not links:
                return
            url = urljoin(url, links[0]["href"])
            page = self.read_json(Link.from_dict({**links[0], "href": url}), parameters=parameters)


@contextmanager
def _named(url: str) -> Iterator[None]:
    """What pystac-client says as ConfigError or TransientError, naming the API."""
    try:
        yield
    except APIError as e:
        status = getattr(e, "status_code", None)
        said = " ".join(str(e).split())[:200]
        if isinstance(e.__context__, UnicodeDecodeError):
            raise ConfigError(f"{url}: it answers something else than text; is it a STAC API?") from e
        if status in REFUSED:
            raise ConfigError(f"{url}: the API refuses with {status}: {said}") from e
        raise TransientError(f"{url}: the API {f'answers {status}' if status else 'is gone'}: {said}; try again") from e
    except json.JSONDecodeError as e:
        raise ConfigError(f"{url}: it answers something else than JSON ({e}); is it a STAC API?") from e
