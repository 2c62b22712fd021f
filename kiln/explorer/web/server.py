"""The explorer's web application: the page, map tiles, search, pictures, exports.

A request can name only things that are looked up: a chip in the table, a file in the page's folder. Its text never
becomes a path, an address or part of a query. Sizes, numbers and rates are bounded. By default the server answers only
this machine, under its own names, so that no other web page can send requests in a visitor's name.
"""

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from kiln.errors import KilnError
from kiln.explorer.web.follower import Follower
from kiln.explorer.web.guard import Guard
from kiln.explorer.web.handlers import Handlers, answer_bug, answer_http_error, answer_known_error
from kiln.explorer.web.picture_cache import PictureCache
from kiln.explorer.web.settings import Settings


def make_app(follower: Follower, pictures: PictureCache, settings: Settings) -> ASGIApp:
    """Return the application.

    Args:
        follower: The database; the caller starts and stops it.
        pictures: The cache of chips' pictures.
        settings: Host names, limits, base map.

    Returns:
        An ASGI application.
    """
    handlers = Handlers(follower, pictures, settings)

    def route(path: str, handler: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
        return Route(path, handler, methods=[method])

    routes = [
        route("/", handlers.index),
        Mount("/page", StaticFiles(directory=settings.page, check_dir=False)),
        route("/api/about", handlers.about),
        route("/api/version", handlers.version),
        route("/api/tiles/{layer}/{z:int}/{x:int}/{y:int}.png", handlers.tile),
        route("/api/chips", handlers.chips),
        route("/api/chip", handlers.chip),
        route("/api/picture/{chip_id:path}.png", handlers.picture),
        route("/api/search", handlers.search, "POST"),
        route("/api/export", handlers.export, "POST"),
    ]
    error_handlers = {KilnError: answer_known_error, HTTPException: answer_http_error, Exception: answer_bug}
    return Guard(Starlette(routes=routes, exception_handlers=error_handlers), settings)
