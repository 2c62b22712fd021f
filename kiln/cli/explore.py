"""The explorer: a map of the embeddings and search by likes and dislikes, in a browser.

kiln explore --db results/sample/explorer --pictures config/config.yaml
"""

import argparse
import contextlib
import ctypes
import json
import logging
import socket
import threading
import webbrowser
from pathlib import Path
from typing import Any

import uvicorn

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.explorer.contact_sheet import read_services
from kiln.explorer.matrix_cache import default_cache
from kiln.explorer.web.follower import POLL_S, Follower
from kiln.explorer.web.picture_cache import MAX_BYTES, PictureCache
from kiln.explorer.web.server import make_app
from kiln.explorer.web.settings import LOCAL_HOSTS, Settings, parse_base_map

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h
SHUTDOWN_S = 3  # time for requests under way when the server stops
log = logging.getLogger(__name__)


def read_base_map(text: str) -> dict[str, Any] | None:
    """Return the base map of JSON text, or of a JSON file. Raises ConfigError."""
    try:
        value = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text())
    except (ValueError, OSError) as e:
        raise ConfigError(f"--base-map: expected JSON, or a file of it, got {text[:100]} ({e}). Correct it.") from e
    return parse_base_map(value)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine; port 0 is any free one. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(256)
    except (OSError, OverflowError) as e:
        raise ConfigError(f"cannot listen at {host} port {port}: {e}. Choose another --port or --host.") from e
    return listener


def reduce_memory() -> None:
    """Let glibc return more freed memory: two arenas instead of eight per core, and no large arrays in arenas.

    With a million chips, this saves 300 MB.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def make_server(follower: Follower, pictures: PictureCache, settings: Settings) -> uvicorn.Server:
    """Return a server that is ready to run. The caller starts and stops the follower."""
    return uvicorn.Server(
        uvicorn.Config(
            make_app(follower, pictures, settings),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            backlog=256,
            limit_concurrency=1000,
            timeout_graceful_shutdown=SHUTDOWN_S,
        )
    )


def explore(args: argparse.Namespace) -> None:
    """Open the database and serve it until the process is stopped. Raises KilnError."""
    if args.poll <= 0 or args.picture_mb < 1:
        raise ConfigError("--poll and --picture-mb: expected more than 0. Correct them.")
    reduce_memory()
    services = read_services(args.pictures)
    base_map = read_base_map(args.base_map) if args.base_map else None
    listener = listen(args.host, args.port)
    host, port = listener.getsockname()[:2]
    is_local = host.startswith("127.") or host == "::1"
    hosts = (*LOCAL_HOSTS, args.host.lower(), host) if is_local else ()
    follower = Follower(args.db, args.cache, args.poll)
    pictures = PictureCache(args.cache / "pictures", services, args.picture_mb << 20)
    server = make_server(follower, pictures, Settings(hosts=hosts, base_map=base_map))
    summary = follower.current.summary
    log.info("%s: version %s, %d chips", args.db, follower.current.name, summary["rows"])
    if summary["untrained"]:
        log.warning("UNTRAINED weights: the similarities are a demonstration")
    if not is_local:
        log.warning("listening at %s without a password: anyone who reaches this machine can look and search", host)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    log.info("the explorer is at %s", address)
    if args.open:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    follower.start()
    try:
        server.run(sockets=[listener])
    finally:
        follower.stop()


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run the server."""
    p = command_line.parser(__doc__, "kiln explore")
    p.add_argument("--db", required=True, help="path or s3:// of the explorer database")
    p.add_argument("--pictures", default="{}", help="config file, or JSON of its `pictures`: the image services")
    p.add_argument("--host", default="127.0.0.1", help="address to listen at; any but this machine's own is logged")
    p.add_argument("--port", type=int, default=8765, help="0: any free one")
    p.add_argument("--cache", type=Path, default=default_cache(), help="folder of the matrix and the pictures")
    p.add_argument("--picture-mb", type=int, default=MAX_BYTES >> 20, help="maximum size of the cached pictures")
    p.add_argument("--base-map", help="JSON, or its file: url with {z}/{x}/{y}, attribution; or wms with url, layers")
    p.add_argument("--poll", type=float, default=POLL_S, help="seconds between looks at the database's tag")
    p.add_argument("--open", action="store_true", help="open it in this machine's browser")
    args = p.parse_args(argv)
    command_line.run(lambda: explore(args))


if __name__ == "__main__":
    main()
