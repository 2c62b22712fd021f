"""A STAC API on loopback that searches, pages, and misbehaves on purpose."""

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from shapely.geometry import shape

COLLECTION = "sentinel-2-l2a"
CONFORMS = ["core", "item-search", "item-search#query"]


class StacApi:
    """Serves the items of one collection: landing page, search by POST or GET with `next` links, and single items.

    `trouble` is what the n-th page of a search (1, 2, ...) answers in place of itself, one entry for each request:
    a status, "html", "half" (a broken connection), "odd" (JSON that is no page), "empty" (no items, but a next page),
    "again" (the first page's items). `matched` is added to the number that the search tells, None tells none; `context`
    tells it the old way. `wait` is the Retry-After of refusals. `searches` lists the bodies as they came.
    """

    def __init__(self, items: list[dict[str, Any]], *, matched: int | None = 0, context: bool = False) -> None:
        self.items, self.matched, self.context = items, matched, context
        self.trouble: dict[int, list[int | str]] = {}
        self.wait: str | None = None
        self.conforms = CONFORMS
        self.get = self.relative = self.merge = False
        self.searches: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                path, _, asked = self.path.partition("?")
                if path == "/":
                    self.answer(outer.landing())
                elif path == "/search":
                    self.search({k: json.loads(v[0]) for k, v in parse_qs(asked).items()})
                elif found := [i for i in outer.items if path == f"/collections/{COLLECTION}/items/{i['id']}"]:
                    self.answer(outer.served(found[0]))
                else:
                    self.answer({"code": "NotFound", "description": path}, 404)

            def do_POST(self) -> None:
                self.search(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def search(self, body: dict[str, Any]) -> None:
                outer.searches.append(body)
                number = body.get("token", 0) // body.get("limit", 10) + 1
                what = outer.trouble.get(number, [])
                odd = what.pop(0) if what else ""
                if isinstance(odd, int):
                    self.answer({"code": "Trouble", "description": "on purpose"}, odd)
                elif odd == "html":
                    self.answer("<html><body>Sign in</body></html>")
                elif odd == "odd":
                    self.answer({"message": "Endpoint request timed out"})
                else:
                    self.answer(outer.page(body, odd), half=odd == "half")

            def answer(self, said: Any, status: int = 200, half: bool = False) -> None:
                data = (said if isinstance(said, str) else json.dumps(said)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(said, str) else "application/geo+json")
                self.send_header("Content-Length", str(len(data)))
                if status >= 400 and outer.wait is not None:
                    self.send_header("Retry-After", outer.wait)
                self.end_headers()
                self.wfile.write(data[: len(data) // 2] if half else data)
                self.close_connection = half

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def landing(self) -> dict[str, Any]:
        """The landing page."""
        links = [{"rel": "self", "href": self.url}, {"rel": "root", "href": self.url}]
        place = {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json"}
        links += [{**place, "method": "GET"}, {**place, "method": "POST"}]
        conforms = [f"https://api.stacspec.org/v1.0.0/{c}" for c in self.conforms]
        head = {"type": "Catalog", "id": "test", "stac_version": "1.0.0", "description": "of a test"}
        return {**head, "conformsTo": conforms, "links": links}

    def served(self, item: dict[str, Any]) -> dict[str, Any]:
        """An item as the API gives it: itself at an address of the API, its canonical link untouched."""
        item = copy.deepcopy(item)
        links = [link for link in item["links"] if link["rel"] != "self"]
        href = f"{self.url}/collections/{COLLECTION}/items/{item['id']}"
        return {**item, "links": [{"rel": "self", "href": href}, *links]}

    def meets(self, item: dict[str, Any], asked: dict[str, Any]) -> bool:
        """Whether an item is asked for."""
        if item["collection"] not in asked.get("collections", [COLLECTION]):
            return False
        if "intersects" in asked and not shape(item["geometry"]).intersects(shape(asked["intersects"])):
            return False
        first, _, last = asked.get("datetime", "../..").partition("/")
        when = item["properties"]["datetime"]
        if (first != ".." and when < first) or (last != ".." and when > last):
            return False
        most = asked.get("query", {}).get("eo:cloud_cover", {}).get("lte", 100)
        return item["properties"].get("eo:cloud_cover", 0) <= most

    def page(self, asked: dict[str, Any], odd: str | int) -> dict[str, Any]:
        """A page of a search."""
        found = [self.served(i) for i in self.items if self.meets(i, asked)]
        start, limit = asked.get("token", 0), asked.get("limit", 10)
        some = [] if odd == "empty" else found[:limit] if odd == "again" else found[start : start + limit]
        page: dict[str, Any] = {"type": "FeatureCollection", "features": some, "links": []}
        if self.matched is not None:
            total = len(found) + self.matched
            page |= {"context": {"matched": total}} if self.context else {"numberMatched": total}
        if start + limit < len(found):
            href = "/search" if self.relative else f"{self.url}/search"
            body = {"token": start + limit} if self.merge else {**asked, "token": start + limit}
            link = {"rel": "next", "method": "POST", "href": href, "body": body, "merge": self.merge}
            if self.get:
                told = "&".join(f"{k}={json.dumps(v)}" for k, v in {**asked, "token": start + limit}.items())
                link = {"rel": "next", "method": "GET", "href": f"{href}?{told}"}
            page["links"] = [link]
        return page

    def stop(self) -> None:
        """End it; its port is free afterwards."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
