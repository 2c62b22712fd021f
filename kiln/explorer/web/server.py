"""The explorer's web server: the page, map tiles, search, pictures, exports. Starlette. What keeps it safe:

What a request names is looked up: a chip in the table, a file in the page's folder; it never becomes a path, an address
or a part of a query. Sizes, numbers and rates are bounded. By default only this machine is answered, under its own
names, so that no other web page can ask in a visitor's name.
"""

import hashlib
import html
import json
import logging
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kiln.errors import ConfigError, KilnError
from kiln.explorer import filters, ranking, results
from kiln.explorer.matrix import UnknownChipError
from kiln.explorer.web import map_tiles
from kiln.explorer.web.follower import Follower, Version
from kiln.explorer.web.picture_cache import PictureCache, plain

PAGE = Path(__file__).parent / "page"
MOST_BODY = 2 << 20  # bytes of a request
MOST_OUTLINES = 20_000
MOST_CLIENTS = 1024  # whose rates are remembered
LOCAL = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """`hosts`: names that the server is asked under (empty: any); rates are requests a second, and a burst of them."""

    hosts: tuple[str, ...] = LOCAL
    base_map: Mapping[str, Any] | None = None
    rate: tuple[float, float] = (200.0, 2000.0)
    search_rate: tuple[float, float] = (10.0, 30.0)
    page: Path = PAGE
    threads: Mapping[str, int] = field(default_factory=lambda: {"search": 2, "tile": 4, "picture": 8, "other": 4})


def base_map(value: Any) -> dict[str, Any] | None:
    """A raster source for the map from the config: {url, attribution, tile_size, max_zoom}, or {wms: {...}} for a WMS.

    `url` is a template with {z}, {x} and {y} (XYZ, or a WMTS with these as TileMatrix, TileCol and TileRow); a WMS has
    url, version, layers and perhaps styles and format. Raises ConfigError.
    """
    if not value:
        return None
    wms = value.get("wms") if isinstance(value, Mapping) else None
    source = wms or value
    known = (
        {"url", "attribution", "tile_size", "max_zoom", "wms"}
        if not wms
        else {"url", "version", "layers", "styles", "format"}
    )
    if not isinstance(source, Mapping) or not isinstance(source.get("url"), str) or set(source) - known:
        raise ConfigError(f"base map: want an object of {', '.join(sorted(known))}")
    url = source["url"]
    if (
        urlsplit(url).scheme not in ("http", "https")
        or not urlsplit(url).netloc
        or re.search(r"[\s;,'\"]", urlsplit(url).netloc)
    ):
        raise ConfigError(f"base map: {url[:100]} is no http address")
    if wms:
        version = str(wms.get("version", "1.3.0"))
        asked = {
            "SERVICE": "WMS", "REQUEST": "GetMap", "VERSION": version, "LAYERS": str(wms.get("layers", "")),
            "STYLES": str(wms.get("styles", "")), "CRS" if version == "1.3.0" else "SRS": "EPSG:3857",
            "WIDTH": "256", "HEIGHT": "256", "FORMAT": str(wms.get("format", "image/png")),
        }  # fmt: skip
        from urllib.parse import urlencode

        url = f"{url}{'&' if '?' in url else '?'}{urlencode(asked)}&BBOX={{bbox-epsg-3857}}"
    elif not all(f"{{{v}}}" in url for v in "zxy"):
        raise ConfigError(f"base map: {url[:100]}: want {{z}}, {{x}} and {{y}} in it")
    return {
        "type": "raster",
        "tiles": [url],
        "tileSize": int(value.get("tile_size", 256)),
        "maxzoom": int(value.get("max_zoom", 19)),
        "attribution": html.escape(str(value.get("attribution", ""))),
    }


def policy(base: Mapping[str, Any] | None) -> str:
    """The Content-Security-Policy: this server alone, and the base map's where one is configured."""
    origins = "".join(sorted({f" {p.scheme}://{p.netloc}" for p in map(urlsplit, base["tiles"])})) if base else ""
    return (
        "default-src 'none'; script-src 'self'; worker-src 'self' blob:; style-src 'self'; font-src 'self'; "
        f"img-src 'self' data: blob:{origins}; connect-src 'self'{origins}; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guard:
    """Around the application: whom it answers, how often, and the headers of every answer."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self.headers = {
            "Content-Security-Policy": policy(settings.base_map),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }
        self._buckets: OrderedDict[tuple[str, bool], tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-cache"
            await send(message)

        host = _host(Headers(scope=scope).get("host", ""))
        if self.settings.hosts and host not in self.settings.hosts:
            answer: ASGIApp = _error(
                421, f"this server is not {host[:80] or 'without a name'}: ask it under its own name"
            )
        elif wait := self._wait(scope):
            answer = _error(429, f"too many requests: wait {wait:.0f} s", {"Retry-After": f"{wait:.0f}"})
        else:
            answer = self.app
        await answer(scope, receive, headed)

    def _wait(self, scope: Scope) -> float:
        """Seconds until this client may ask again; 0: now. A bucket of requests that fills at a steady rate."""
        heavy = scope["path"] in ("/api/search", "/api/export")
        rate, burst = self.settings.search_rate if heavy else self.settings.rate
        key, now = ((scope.get("client") or ("", 0))[0], heavy), time.monotonic()
        with self._lock:
            left, since = self._buckets.pop(key, (burst, now))
            left = min(burst, left + (now - since) * rate)
            self._buckets[key] = (left - 1 if left >= 1 else left, now)
            while len(self._buckets) > MOST_CLIENTS:
                self._buckets.popitem(last=False)
        return 0.0 if left >= 1 else max(1.0, (1 - left) / rate)


def _host(header: str) -> str:
    """The name of a Host header, without its port."""
    return header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0].lower()


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": text}, status, headers)


class Explorer:
    """The routes' functions over what they share."""

    def __init__(self, follower: Follower, pictures: PictureCache, settings: Settings) -> None:
        self.follower, self.pictures, self.settings = follower, pictures, settings
        self.limits = {name: anyio.CapacityLimiter(n) for name, n in settings.threads.items()}
        self.blank = map_tiles.empty()

    async def aside(self, kind: str, work: Callable[[], Any]) -> Any:
        """Do work in a thread; so many of a kind at once, so that slow pictures never hold up a search."""
        return await anyio.to_thread.run_sync(work, limiter=self.limits[kind])

    # ------------------------------------------------------------------------------------------------ the whole

    async def index(self, request: Request) -> Response:
        """GET /: the page."""
        path = self.settings.page / "index.html"
        if not path.is_file():
            return _error(404, "the page's files are missing: this copy of Kiln is not whole")
        return Response(path.read_bytes(), media_type="text/html")

    async def about(self, request: Request) -> Response:
        """GET /api/about."""
        version = self.follower.current
        limits = {
            "most_results": ranking.MOST_RESULTS,
            "most_marks": ranking.MOST_MARKS,
            "most_outlines": MOST_OUTLINES,
        }
        told = {"version": version.name, **version.about, "methods": list(ranking.METHODS), **limits}
        return JSONResponse({**told, "base_map": self.settings.base_map})

    async def version(self, request: Request) -> Response:
        """GET /api/version."""
        return JSONResponse({"version": self.follower.current.name, "problem": self.follower.problem or None})

    # --------------------------------------------------------------------------------------------- what is where

    async def tile(self, request: Request) -> Response:
        """GET /api/tiles/{layer}/{z}/{x}/{y}.png."""
        version, where = self.follower.current, _where(request)
        layer, z, x, y = (request.path_params[n] for n in ("layer", "z", "x", "y"))
        map_tiles.check(layer, z, x, y)
        etag = f'"{hashlib.sha256(f"{version.name}/{layer}/{z}/{x}/{y}/{where}".encode()).hexdigest()[:24]}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)

        def draw() -> bytes:
            return (
                map_tiles.tile(version.matrix, layer, z, x, y, version.mask(where))
                if len(version.matrix)
                else self.blank
            )

        made = await self.aside("tile", lambda: version.tiles.get((layer, z, x, y, where), draw))
        return Response(made, media_type="image/png", headers=headers)

    async def chips(self, request: Request) -> Response:
        """GET /api/chips?bbox=: outlines of the chips in view, or how many too many they are."""
        query = dict(request.query_params)
        box = filters.parse_box(query.pop("bbox", "").split(","))
        version, where = self.follower.current, filters.parse_query(query)

        def look() -> bytes:
            rows = version.matrix.in_view(box, version.mask(where)) if len(version.matrix) else []
            many = len(rows) > MOST_OUTLINES
            return _json({"too_many": len(rows)} if many else results.outlines(version.matrix, rows))

        return Response(await self.aside("other", look), media_type="application/geo+json")

    async def chip(self, request: Request) -> Response:
        """GET /api/chip?id= or ?at=lon,lat: the facts of one chip."""
        query = dict(request.query_params)
        chip_id, at = query.pop("id", ""), query.pop("at", "")
        version, where = self.follower.current, filters.parse_query(query)
        if bool(chip_id) == bool(at):
            raise ConfigError("want either id=CHIP_ID or at=LON,LAT")

        def look() -> dict[str, Any]:
            if chip_id:
                row = int(version.matrix.rows_of([chip_id])[0])
            else:
                lon, lat = _place(at)
                if not len(version.matrix):
                    raise UnknownChipError("the database is empty: there is no chip")
                row = version.matrix.at(lon, lat, version.mask(where))
            return results.facts(version.matrix, [row])[0]

        return JSONResponse(await self.aside("other", look))

    async def picture(self, request: Request) -> Response:
        """GET /api/picture/{chip_id}.png: a picture of a known chip, whatever happens."""
        matrix = self.follower.current.matrix

        def look() -> Any:
            row = results.facts(matrix, matrix.rows_of([request.path_params["chip_id"]]))[0]
            return self.pictures.get(row)

        shown = await self.aside("picture", look)
        kept = "private, max-age=3600" if shown.origin != "none" else "no-store"
        told = {"X-Picture-From": shown.origin, "X-Picture-Why": plain(shown.why), "Cache-Control": kept}
        return Response(shown.png, media_type="image/png", headers=told)

    # -------------------------------------------------------------------------------------------------- searches

    async def search(self, request: Request) -> Response:
        """POST /api/search."""
        began, query = time.perf_counter(), _query(await _body(request))
        version = self.follower.current

        def work() -> bytes:
            ranked, rows = _ranked(version, query)
            ms = round((time.perf_counter() - began) * 1000, 1)
            told = {"version": version.name, "method": query.method, "by": ranked.by, "note": ranked.note, "ms": ms}
            return _json({"results": rows, **told})

        return Response(await self.aside("search", work), media_type="application/json")

    async def export(self, request: Request) -> Response:
        """POST /api/export: the results of a search as a file."""
        body = await _body(request)
        kind, embeddings = body.pop("format", "geojson"), body.pop("embeddings", False)
        if kind not in ("geojson", "geoparquet") or not isinstance(embeddings, bool):
            raise ConfigError("export: want format geojson or geoparquet, and embeddings true or false")
        query, version = _query(body), self.follower.current

        def work() -> bytes:
            ranked, rows = _ranked(version, query)
            vectors = version.matrix.vectors[ranked.rows] if embeddings else None
            if kind == "geojson":
                return _json(results.as_geojson(rows, vectors))
            with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
                path = Path(folder) / "similar.parquet"
                results.as_geoparquet(rows, path, version.db.about, vectors)
                return path.read_bytes()

        media, name = (
            ("application/geo+json", "similar.geojson")
            if kind == "geojson"
            else ("application/vnd.apache.parquet", "similar.parquet")
        )
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return Response(await self.aside("search", work), media_type=media, headers=headers)


def _ranked(version: Version, query: ranking.Query) -> tuple[ranking.Ranked, list[dict[str, Any]]]:
    ranked = ranking.search(version.db, version.matrix, query, version.mask(query.where))
    return ranked, results.facts(version.matrix, ranked.rows, ranked.scores)


def _where(request: Request) -> filters.Where:
    """Filters of an address; what else stands there (a version, to tell browsers' caches apart) is no filter."""
    return filters.parse_query({k: v for k, v in request.query_params.items() if k != "v"})


def _place(text: str) -> tuple[float, float]:
    try:
        lon, lat = (float(v) for v in text.split(","))
    except ValueError:
        raise ConfigError(f"at={text[:40]}: want longitude,latitude in degrees") from None
    return lon, lat


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises HTTPException for another kind, too much, or no JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "want Content-Type: application/json")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BODY:
            raise HTTPException(413, f"a request of more than {MOST_BODY >> 20} MB; send fewer marks or a simpler area")
    try:
        value = json.loads(bytes(data), parse_constant=_no_constant)
    except (ValueError, RecursionError) as e:
        raise HTTPException(400, f"the request is no JSON: {str(e)[:120]}") from e
    if not isinstance(value, dict):
        raise HTTPException(400, "the request is JSON, but no object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _query(body: dict[str, Any]) -> ranking.Query:
    """The search of a request. Raises ConfigError."""
    known = {"likes", "dislikes", "method", "k", "apart_km", "filters"}
    if unknown := sorted(set(body) - known):
        raise ConfigError(f"search: {unknown[0][:40]!r} is none of {', '.join(sorted(known))}")
    likes, dislikes = (_marks(body.get(n, []), n) for n in ("likes", "dislikes"))
    k, km = body.get("k", 50), body.get("apart_km", 0) or 0
    if type(k) is not int or type(km) not in (int, float) or not isinstance(body.get("method", "mean"), str):
        raise ConfigError("search: want k as a whole number, apart_km as a number and method as a name")
    where = filters.parse(body.get("filters") or {})
    return ranking.Query(likes, dislikes, body.get("method", "mean"), k, float(km), where)


def _marks(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"search: {name}: want a list of chip ids")
    return tuple(value)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


async def _known_error(request: Request, e: Exception) -> Response:
    """404 for what is not there, 422 for what cannot be asked, 503 for what may work later."""
    status = 404 if isinstance(e, UnknownChipError) else 422 if isinstance(e, ConfigError) else 503
    return _error(status, str(e))


async def _http_error(request: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)
    return _error(e.status_code, e.detail, e.headers)


async def _bug(request: Request, e: Exception) -> Response:
    """A bug: the log has its traceback (uvicorn writes it), the page learns no more than that."""
    return _error(500, "the server failed at this; its log says why")


def make_app(follower: Follower, pictures: PictureCache, settings: Settings) -> ASGIApp:
    """The application. It follows the tag while it is served."""
    explorer = Explorer(follower, pictures, settings)

    def route(path: str, answer: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        return Route(path, answer, methods=[method])

    routes = [
        route("/", explorer.index),
        Mount("/page", StaticFiles(directory=settings.page, check_dir=False)),
        route("/api/about", explorer.about),
        route("/api/version", explorer.version),
        route("/api/tiles/{layer}/{z:int}/{x:int}/{y:int}.png", explorer.tile),
        route("/api/chips", explorer.chips),
        route("/api/chip", explorer.chip),
        route("/api/picture/{chip_id:path}.png", explorer.picture),
        route("/api/search", explorer.search, "POST"),
        route("/api/export", explorer.export, "POST"),
    ]
    handlers = {KilnError: _known_error, HTTPException: _http_error, Exception: _bug}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), settings)
