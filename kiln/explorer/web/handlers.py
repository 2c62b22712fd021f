"""The handlers of the API: each parses a request, asks the current version in a thread, and writes the response."""

import hashlib
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kiln.errors import ConfigError
from kiln.explorer.chips import UnknownChipError
from kiln.explorer.search import MAX_MARKS, METHODS
from kiln.explorer.web import map_tiles, version
from kiln.explorer.web.api_requests import (
    MAX_RESULTS,
    ExportBody,
    SearchBody,
    parse_bbox,
    parse_point,
    query_filter,
    read_body,
)
from kiln.explorer.web.follower import Follower
from kiln.explorer.web.guard import error_response
from kiln.explorer.web.picture_cache import CachedPicture, PictureCache, header_text
from kiln.explorer.web.settings import Settings
from kiln.explorer.web.version import to_json

EXPORT_FILES = {
    "geojson": ("application/geo+json", "similar.geojson"),
    "geoparquet": ("application/vnd.apache.parquet", "similar.parquet"),
}
R = TypeVar("R")


class Handlers:
    """The handlers, with the follower, the pictures and the settings that they share."""

    def __init__(self, follower: Follower, pictures: PictureCache, settings: Settings) -> None:
        self._follower, self._pictures, self._settings = follower, pictures, settings
        self._limiters = {kind: anyio.CapacityLimiter(n) for kind, n in settings.threads.items()}

    async def _in_thread(self, kind: str, work: Callable[[], R]) -> R:
        """Return the result of work done in one of the threads for its kind."""
        return await anyio.to_thread.run_sync(work, limiter=self._limiters[kind])

    async def index(self, request: Request) -> Response:
        """Answer GET /: the page."""
        path = self._settings.page / "index.html"
        if not path.is_file():
            return error_response(404, "the page's files are missing: this copy of Kiln is incomplete")
        return Response(path.read_bytes(), media_type="text/html")

    async def about(self, request: Request) -> Response:
        """Answer GET /api/about: the summary of the database, and the API's limits."""
        current = self._follower.current
        return JSONResponse(
            {
                "version": current.name,
                **current.summary,
                "methods": list(METHODS),
                "max_results": MAX_RESULTS,
                "max_marks": MAX_MARKS,
                "max_outlines": version.MAX_OUTLINES,
                "base_map": self._settings.base_map,
            }
        )

    async def version(self, request: Request) -> Response:
        """Answer GET /api/version: the current version, and why the tag cannot be followed."""
        return JSONResponse({"version": self._follower.current.name, "problem": self._follower.problem or None})

    async def tile(self, request: Request) -> Response:
        """Answer GET /api/tiles/{layer}/{z}/{x}/{y}.png; the parameter `v` only separates browsers' caches."""
        current = self._follower.current
        where = query_filter({k: v for k, v in request.query_params.items() if k != "v"})
        layer, z, x, y = (request.path_params[n] for n in ("layer", "z", "x", "y"))
        map_tiles.check_tile(layer, z, x, y)
        etag = f'"{hashlib.sha256(f"{current.name}/{layer}/{z}/{x}/{y}/{where}".encode()).hexdigest()[:24]}"'
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        png = await self._in_thread("tile", lambda: current.tile(layer, z, x, y, where))
        return Response(png, media_type="image/png", headers=headers)

    async def chips(self, request: Request) -> Response:
        """Answer GET /api/chips?bbox=: the outlines of the chips in view."""
        parameters = dict(request.query_params)
        bbox = parse_bbox(parameters.pop("bbox", ""))
        current, where = self._follower.current, query_filter(parameters)
        body = await self._in_thread("other", lambda: to_json(current.outlines(bbox, where)))
        return Response(body, media_type="application/geo+json")

    async def chip(self, request: Request) -> Response:
        """Answer GET /api/chip?id= or ?at=lon,lat: the facts of one chip."""
        parameters = dict(request.query_params)
        chip_id, at = parameters.pop("id", ""), parameters.pop("at", "")
        current, where = self._follower.current, query_filter(parameters)
        if bool(chip_id) == bool(at):
            raise ConfigError("chip: expected either id=CHIP_ID or at=LON,LAT, got both or none. Give one of them.")
        if chip_id:
            return JSONResponse(await self._in_thread("other", lambda: current.chip(chip_id)))
        lon, lat = parse_point(at)
        return JSONResponse(await self._in_thread("other", lambda: current.chip_at(lon, lat, where)))

    async def picture(self, request: Request) -> Response:
        """Answer GET /api/picture/{chip_id}.png: the picture of a chip, or a grey square without one."""
        current, chip_id = self._follower.current, request.path_params["chip_id"]

        def read() -> CachedPicture:
            return self._pictures.get(current.chip(chip_id))

        picture = await self._in_thread("picture", read)
        headers = {
            "X-Picture-From": picture.origin,
            "X-Picture-Why": header_text(picture.why),
            "Cache-Control": "private, max-age=3600" if picture.origin != "none" else "no-store",
        }
        return Response(picture.png, media_type="image/png", headers=headers)

    async def search(self, request: Request) -> Response:
        """Answer POST /api/search."""
        started_at = time.perf_counter()
        query = (await read_body(request, SearchBody)).query()
        current = self._follower.current

        def work() -> bytes:
            result = current.search(query)
            ms = round((time.perf_counter() - started_at) * 1000, 1)
            how = {"version": current.name, "method": query.method, "by": result.compared_by, "note": result.note}
            return to_json({"results": [hit.to_json() for hit in result.hits], **how, "ms": ms})

        return Response(await self._in_thread("search", work), media_type="application/json")

    async def export(self, request: Request) -> Response:
        """Answer POST /api/export: the results of a search as a file."""
        body = await read_body(request, ExportBody)
        query, current = body.query(), self._follower.current
        data = await self._in_thread("search", lambda: current.export(query, body.format, body.embeddings))
        media_type, name = EXPORT_FILES[body.format]
        headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
        return Response(data, media_type=media_type, headers=headers)


async def answer_known_error(request: Request, e: Exception) -> Response:
    """Answer 404 for an unknown chip, 422 for an invalid request, 503 for anything that may work later."""
    status = 404 if isinstance(e, UnknownChipError) else 422 if isinstance(e, ConfigError) else 503
    return error_response(status, str(e))


async def answer_http_error(request: Request, e: Exception) -> Response:
    """Answer with the status of an HTTPException."""
    assert isinstance(e, HTTPException)
    return error_response(e.status_code, e.detail, e.headers)


async def answer_bug(request: Request, e: Exception) -> Response:
    """Answer 500 without details; uvicorn writes the traceback to the log."""
    return error_response(500, "the server failed; its log has the reason")
