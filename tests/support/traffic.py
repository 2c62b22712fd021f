"""The traffic of a file server, by its own list of requests."""

import re

from kiln.io.storage import Traffic
from tests.support.server import FileServer


def served(server: FileServer) -> Traffic:
    """Return the requests that a server answered, and the bytes of bodies that it sent to GET requests.

    Call it before the server's files or its status change.
    """
    return Traffic(len(server.requests), sum(_body_bytes(server, *request) for request in server.requests))


def _body_bytes(server: FileServer, method: str, path: str, byte_range: str | None) -> int:
    if method != "GET":
        return 0
    if server.status >= 300 or path not in server.files:
        return len(server.body)
    size = len(server.files[path])
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range or "") if server.ranges else None
    if span is None:
        return size
    return (min(int(span[2]) + 1, size) if span[2] else size) - int(span[1])
