"""The guard around the application: host names, rates of requests, and security headers."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kiln.explorer.web.settings import Rate, Settings

MAX_CLIENTS = 1024  # clients whose rates are remembered
SEARCH_PATHS = ("/api/search", "/api/export")


def error_response(status: int, text: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an error as the page expects it: `{"error": text}`."""
    return JSONResponse({"error": text}, status, headers)


def content_security_policy(base_map: Mapping[str, Any] | None) -> str:
    """Return the Content-Security-Policy: it allows this server, and the base map's if one is configured."""
    tiles = map(urlsplit, base_map["tiles"]) if base_map else ()
    origins = "".join(sorted({f" {url.scheme}://{url.netloc}" for url in tiles}))
    return (
        "default-src 'none'; script-src 'self'; worker-src 'self' blob:; style-src 'self'; font-src 'self'; "
        f"img-src 'self' data: blob:{origins}; connect-src 'self'{origins}; manifest-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guard:
    """ASGI middleware that refuses foreign host names and too many requests, and adds headers to every response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hosts = settings.hosts
        self._limits = {False: RateLimiter(settings.rate), True: RateLimiter(settings.search_rate)}
        self._headers = {
            "Content-Security-Policy": content_security_policy(settings.base_map),
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an ASGI request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
                if "cache-control" not in headers:
                    headers["Cache-Control"] = "no-cache"
            await send(message)

        response = self._refusal(scope) or self._app
        await response(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        """Return the error response of a request that is refused, None for any other."""
        host = _host_name(Headers(scope=scope).get("host", ""))
        if self._hosts and host not in self._hosts:
            return error_response(
                421, f"Host: expected {' or '.join(self._hosts)}, got {host[:80] or 'none'}. Use one of these names."
            )
        client = (scope.get("client") or ("", 0))[0]
        if wait_s := self._limits[scope["path"] in SEARCH_PATHS].take(client):
            return error_response(429, f"too many requests: wait {wait_s:.0f} s", {"Retry-After": f"{wait_s:.0f}"})
        return None


class RateLimiter:
    """A token bucket per client: each request takes a token, and tokens return at a steady rate."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def take(self, client: str) -> float:
        """Take a token; return 0, or the seconds to wait if the client has none."""
        now = time.monotonic()
        with self._lock:
            tokens, counted_at = self._buckets.pop(client, (self._rate.burst, now))
            tokens = min(self._rate.burst, tokens + (now - counted_at) * self._rate.per_second)
            self._buckets[client] = (tokens - 1 if tokens >= 1 else tokens, now)
            while len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        return 0.0 if tokens >= 1 else max(1.0, (1 - tokens) / self._rate.per_second)


def _host_name(header: str) -> str:
    """Return the host name of a Host header, without the port."""
    return header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0].lower()
