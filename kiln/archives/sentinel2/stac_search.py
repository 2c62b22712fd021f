"""The search of a STAC API: every item of an area, or an error, never some of them.

pystac-client sends the requests and turns the pages. This module detects the failures that it ignores: a page that is
no page of items, pages without end, and fewer items than the server announces.
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
from kiln.formats.bounding_box import BoundingBox
from kiln.io import storage
from kiln.io.fault import TRANSIENT_STATUS, proxy_error, setup_error

PAGE_ITEMS = 100  # a page of a hundred is about 3 MB, and gateways cut off at 6 to 10 MB
MAX_POSITIONS = 2000  # of the polygons of one request
MAX_RETRIES = 6  # of a request
BACKOFF_S = 1.0  # before the second retry, twice as long before each further one
MAX_WAIT_S = 300  # also if the server's Retry-After is longer
PERMANENT_STATUS = (400, 401, 403, 404, 405, 413, 414, 422)  # a retry gets the same answer
log = logging.getLogger(__name__)


def region_of(bbox: BoundingBox) -> BaseGeometry:
    """Return a bounding box as a geometry, in two parts where it crosses the antimeridian."""
    return shapely.union_all([shapely.box(*part) for part in bbox.parts()])


def read_area(uri: str) -> BaseGeometry:
    """Return the union of the geometries of a GeoJSON file.

    Args:
        uri: Path, s3://, http:// or https:// of the file.

    Returns:
        The geometry, in degrees.

    Raises:
        ConfigError: If the file is no GeoJSON, has no geometry, or is not in degrees.
        TransientError: If its store is busy.
    """
    where = f"area {uri}"
    try:
        document = json.loads(storage.read_bytes(uri))
    except SourceError as e:
        raise ConfigError(f"area {e}") from e
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{where}: expected GeoJSON, got a file that is not JSON ({e}).") from e
    try:
        features = document["features"] if document["type"] == "FeatureCollection" else [document]
        geometries = [f["geometry"] if f["type"] == "Feature" else f for f in features]
        union = shapely.union_all([shapely.make_valid(shape(g)) for g in geometries if g is not None])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, shapely.errors.ShapelyError) as e:
        raise ConfigError(f"{where}: expected GeoJSON, got other JSON ({type(e).__name__}: {e}).") from e
    if union.is_empty:
        raise ConfigError(f"{where}: expected a geometry, got none.")
    west, south, east, north = union.bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
        raise ConfigError(
            f"{where}: expected degrees of longitude and latitude, cut at the antimeridian, got "
            f"{west:g}, {south:g} to {east:g}, {north:g}. Convert it to EPSG:4326."
        )
    return union


def split_region(region: BaseGeometry, max_positions: int = MAX_POSITIONS) -> Iterator[BaseGeometry]:
    """Yield the parts of a region, together while they have at most `max_positions` and are of one kind."""
    group: list[BaseGeometry] = []
    for part in sorted(getattr(region, "geoms", [region]), key=lambda g: (g.geom_type, g.bounds)):
        positions = shapely.get_num_coordinates([*group, part]).sum()
        if group and (positions > max_positions or part.geom_type != group[0].geom_type):
            yield shapely.union_all(group)
            group = []
        group.append(part)
    yield shapely.union_all(group)


def search(
    url: str,
    collection: str,
    *,
    region: BaseGeometry | None = None,
    dates: str | None = None,
    max_cloud: float | None = None,
    page_size: int = PAGE_ITEMS,
    backoff_s: float = BACKOFF_S,
) -> Iterator[dict[str, Any]]:
    """Yield every item of a collection that meets a region, as the API spells it.

    Args:
        url: Landing page of the API.
        collection: Id of the collection.
        region: Geometry in degrees that items meet; None: anywhere. An item that several of its parts meet is yielded
            for each of them.
        dates: First and last day, as `2020-01-01/2020-12-31`; None: any time.
        max_cloud: Maximum cloud cover in percent; it is sent if the API knows the query extension.
        page_size: Items of a page.
        backoff_s: Seconds before the second retry of a request.

    Raises:
        ConfigError: If the address is no STAC API, or the API refuses the request.
        TransientError: If a page cannot be read after `MAX_RETRIES` retries, or items are missing.
    """
    io = PagingIO(backoff_s)
    with _named_errors(url):
        try:
            client = Client.open(url, stac_io=io, timeout=storage.http.TIMEOUT_S)
        except (pystac.STACError, ClientTypeError, KeyError, TypeError, AttributeError, ValueError) as e:
            raise ConfigError(f"{url}: expected the landing page of a STAC API ({type(e).__name__}: {e}).") from e
    query = {"eo:cloud_cover": {"lte": max_cloud}} if max_cloud is not None and client.conforms_to("QUERY") else None
    for part in [None] if region is None else split_region(region):
        with _named_errors(url):
            try:
                request = client.search(
                    collections=[collection],
                    intersects=None if part is None else mapping(part),
                    datetime=dates,
                    query=query,
                    limit=page_size,
                )
            except DoesNotConformTo as e:
                raise ConfigError(f"{url}: expected a STAC API with item search, got a catalogue ({e}).") from e
            yield from _check_items(url, io.get_pages(request.url, request.method, request.get_parameters()))


def _check_items(url: str, pages: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the items of all pages. Raises TransientError if some are missing, or a page repeats earlier ones."""
    seen: set[str] = set()
    matched = 0
    for n, page in enumerate(pages, 1):
        totals = (
            page.get("numberMatched"),
            *((page.get(k) or {}).get("matched") for k in ("context", "search:metadata")),
        )
        matched = max([matched, *(total for total in totals if isinstance(total, int))])
        ids = [str(f["id"]) for f in page["features"] if isinstance(f, dict) and isinstance(f.get("id"), str)]
        if len(ids) < len(page["features"]):
            raise SourceError(f"{url}, page {n}: expected items with an id, got one without.")
        if ids and seen.issuperset(ids):
            raise TransientError(
                f"{url}, page {n}: expected further items, got those of earlier pages. Try again later."
            )
        seen.update(ids)
        log.debug("%s: page %d, %d of %d items", url, n, len(seen), matched)
        yield from page["features"]
    if len(seen) < matched:
        raise TransientError(f"{url}: expected {matched} items, got {len(seen)}. Try again later.")


class PagingIO(StacApiIO):
    """The requests of pystac-client, with retries, and with pages that end where the server has no next one."""

    def __init__(self, backoff_s: float) -> None:
        retries = Retry(
            MAX_RETRIES,
            status_forcelist=TRANSIENT_STATUS,
            allowed_methods=None,  # a search by POST changes nothing
            backoff_factor=backoff_s,
            retry_after_max=MAX_WAIT_S,
            raise_on_status=False,
        )
        super().__init__(timeout=storage.http.TIMEOUT_S, max_retries=retries)
        self.session.verify = storage.http.ca_bundle() or True

    def request(self, *args: Any, **kwargs: Any) -> str:
        """Return the text of an answer; urllib3 does not retry an answer that breaks off, so this method does."""
        for _ in range(MAX_RETRIES):
            try:
                return str(super().request(*args, **kwargs))
            except APIError as e:
                if not isinstance(e.__context__, requests.exceptions.ChunkedEncodingError):
                    raise
                log.info("retry: %s", e)
        return str(super().request(*args, **kwargs))

    def get_pages(
        self, url: str, method: str | None = None, parameters: dict[str, Any] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the pages of an answer, after an empty one too. Raises TransientError for JSON that is no page."""
        page = self.read_json(url, method=method, parameters=parameters)
        while True:
            if not isinstance(page, dict) or not isinstance(page.get("features"), list):
                raise TransientError(f"{url}: expected a page of items, got {json.dumps(page)[:200]}. Try again later.")
            yield page
            links = [link for link in page.get("links") or [] if link.get("rel") == "next" and link.get("href")]
            if not links:
                return
            url = urljoin(url, links[0]["href"])
            page = self.read_json(Link.from_dict({**links[0], "href": url}), parameters=parameters)


@contextmanager
def _named_errors(url: str) -> Iterator[None]:
    """Raise errors of pystac-client as ConfigError or TransientError that name the API."""
    try:
        yield
    except APIError as e:
        status = getattr(e, "status_code", None)
        message = " ".join(str(e).split())[:200]
        if isinstance(e.__context__, UnicodeDecodeError):
            raise ConfigError(f"{url}: expected a STAC API, got an answer that is no text. Check the address.") from e
        if status == 407:
            raise proxy_error(url) from e
        if status in PERMANENT_STATUS:
            raise ConfigError(f"{url}: the API refuses with {status}: {message}") from e
        if not status and (setup := setup_error(url, str(e))):
            raise setup from e
        problem = f"the API answers {status}" if status else "the API cannot be reached"
        raise TransientError(f"{url}: {problem}: {message}. Try again later.") from e
    except json.JSONDecodeError as e:
        raise ConfigError(
            f"{url}: expected a STAC API, got an answer that is not JSON ({e}). Check the address."
        ) from e
