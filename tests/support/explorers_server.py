"""A real explorer server in a thread of the test process."""

import threading
import time
from pathlib import Path
from typing import Any

import requests
import uvicorn

from kiln.cli.explore import listen, make_server
from kiln.explorer.web.follower import Follower
from kiln.explorer.web.picture_cache import PictureCache
from kiln.explorer.web.settings import Rate, Settings

UNLIMITED = {"rate": Rate(1e6, 1e6), "search_rate": Rate(1e6, 1e6)}


class ExplorerServer:
    """A server of a database on a free port. `get` and `post` send requests; `stop` must be called at the end."""

    def __init__(self, db: str, cache: Path, services: dict[str, Any] | None = None, **settings: Any) -> None:
        self.follower = Follower(db, cache, 0.1)
        self.pictures = PictureCache(cache / "pictures", services or {})
        listening = listen("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self.server: uvicorn.Server = make_server(self.follower, self.pictures, Settings(**(UNLIMITED | settings)))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [listening]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def get(self, path: str, **options: Any) -> requests.Response:
        """Return the response to a GET request."""
        return requests.get(self.address + path, timeout=60, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        """Return the response to a POST request with a JSON body."""
        content = {"json": body} if body is not None else {}
        return requests.post(self.address + path, timeout=60, **content, **options)

    def stop(self) -> None:
        """Stop the server."""
        self.follower.stop()
        self.server.should_exit = True
        self.thread.join(10)
        assert not self.thread.is_alive()


def error_text(answer: requests.Response, status: int) -> str:
    """Return the error text of a response, which must have this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    text: str = answer.json()["error"]
    return text
