"""The explorer: a map of what was embedded, and search by likes and dislikes, in a browser.

python -m kiln.cli.explore --db results/sample/explorer --pictures config/config.yaml
"""

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
from kiln.cli.search import read_services
from kiln.errors import ConfigError
from kiln.explorer.matrix import default_cache
from kiln.explorer.web import server
from kiln.explorer.web.follower import POLL, Follower
from kiln.explorer.web.picture_cache import MOST_BYTES, PictureCache

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of glibc's malloc.h
GRACE = 3  # seconds that answers under way get when the server is told to stop
log = logging.getLogger(__name__)


def read_base_map(text: str) -> dict[str, Any] | None:
    """The base map of JSON, or of a file of JSON. Raises ConfigError."""
    try:
        return server.base_map(json.loads(text if text.lstrip().startswith("{") else Path(text).read_text()))
    except (ValueError, OSError, TypeError) as e:
        raise ConfigError(f"--base-map is no JSON, and no file of it: {text[:100]} ({e})") from e


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at an address of this machine; port 0 is any free one. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(256)
    except (OSError, OverflowError) as e:
        raise ConfigError(f"cannot listen at {host} port {port}: {e}; say another --port or --host") from e
    return made


def keep_little() -> None:
    """Let glibc keep little of what is freed: two stores, not eight for each core, and large arrays in neither.

    With a million chips that is 300 MB.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def serve(follower: Follower, pictures: PictureCache, settings: server.Settings) -> uvicorn.Server:
    """A server that is ready to run; whoever runs it starts and stops the follower."""
    app = server.make_app(follower, pictures, settings)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            backlog=256,
            limit_concurrency=1000,
            timeout_graceful_shutdown=GRACE,
        )
    )


def main(argv: list[str] | None = None) -> None:
    """Open the database and serve it until told to stop."""
    p = command_line.parser(__doc__, "kiln.cli.explore")
    p.add_argument("--db", required=True, help="path or s3:// of the explorer database")
    p.add_argument("--pictures", default="{}", help="config file, or JSON of its `pictures`: the image services")
    p.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; another one than this machine's own is told"
    )
    p.add_argument("--port", type=int, default=8765, help="0: any free one")
    p.add_argument("--cache", type=Path, default=default_cache(), help="folder of the matrix and the pictures")
    p.add_argument("--picture-mb", type=int, default=MOST_BYTES >> 20, help="of pictures kept at most")
    p.add_argument("--base-map", help="JSON, or its file: url with {z}/{x}/{y}, attribution; or wms with url, layers")
    p.add_argument("--poll", type=float, default=POLL, help="seconds between looks at the database's tag")
    p.add_argument("--open", action="store_true", help="show it in this machine's browser")
    args = p.parse_args(argv)

    def work() -> None:
        if args.poll <= 0 or args.picture_mb < 1:
            raise ConfigError("--poll and --picture-mb: want more than 0")
        keep_little()
        services = read_services(args.pictures)
        base = read_base_map(args.base_map) if args.base_map else None
        listening = bind(args.host, args.port)
        host, port = listening.getsockname()[:2]
        local = host.startswith("127.") or host == "::1"
        follower = Follower(args.db, args.cache, args.poll)
        pictures = PictureCache(args.cache / "pictures", services, args.picture_mb << 20)
        settings = server.Settings(hosts=(*server.LOCAL, args.host.lower(), host) if local else (), base_map=base)
        made = serve(follower, pictures, settings)
        about = follower.current.about
        log.info("%s: version %s, %d chips", args.db, follower.current.name, about["rows"])
        if about["untrained"]:
            log.warning("UNTRAINED weights: the similarities are a demonstration")
        if not local:
            log.warning("listening at %s: whoever reaches this machine can look and search; there is no password", host)
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
        log.info("the explorer is at %s", address)
        if args.open:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        follower.start()
        try:
            made.run(sockets=[listening])
        finally:
            follower.stop()

    command_line.run(work)


if __name__ == "__main__":
    main()
