"""A STAC API on loopback that searches, returns pages, and fails on request."""

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
    """A server of one collection: landing page, search by POST or GET with `next` links, and single items.

    Attributes:
        trouble: Responses that replace the n-th page of a search (n from 1), one for each request: a status code,
            "html", "half" (the connection breaks), "odd" (JSON that is not a page), "empty" (no items, but a next
            page) or "again" (the first page's items).
        matched: Added to the number of matched items that a search reports. With None, it reports no number.
        context: Whether that number is reported in the old field, `context.matched`.
        wait: The header Retry-After of responses with status 400 and above.
        conforms: The conformance classes of the landing page.
        get: Whether `next` links use GET.
        relative: Whether `next` links are relative.
        merge: Whether the bodies of `next` links hold only the token.
        searches: The bodies of all searches, in order.
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
            disable_nagle_algorithm = True  # a body follows its header at once, not 40 ms later

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                path, _, parameters = self.path.partition("?")
                if path == "/":
                    self.answer(outer.landing())
                elif path == "/search":
                    self.search({k: json.loads(v[0]) for k, v in parse_qs(parameters).items()})
                elif found := [i for i in outer.items if path == f"/collections/{COLLECTION}/items/{i['id']}"]:
                    self.answer(outer.served(found[0]))
                else:
                    self.answer({"code": "NotFound", "description": path}, 404)

            def do_POST(self) -> None:
                self.search(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def search(self, body: dict[str, Any]) -> None:
                outer.searches.append(body)
                number = body.get("token", 0) // body.get("limit", 10) + 1
                planned = outer.trouble.get(number, [])
                trouble = planned.pop(0) if planned else ""
                if isinstance(trouble, int):
                    self.answer({"code": "Trouble", "description": "on purpose"}, trouble)
                elif trouble == "html":
                    self.answer("<html><body>Sign in</body></html>")
                elif trouble == "odd":
                    self.answer({"message": "Endpoint request timed out"})
                else:
                    self.answer(outer.page(body, trouble), half=trouble == "half")

            def answer(self, content: Any, status: int = 200, half: bool = False) -> None:
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(content, str) else "application/geo+json")
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
        """Return the landing page."""
        links = [{"rel": "self", "href": self.url}, {"rel": "root", "href": self.url}]
        search = {"rel": "search", "href": f"{self.url}/search", "type": "application/geo+json"}
        links += [{**search, "method": "GET"}, {**search, "method": "POST"}]
        conforms = [f"https://api.stacspec.org/v1.0.0/{c}" for c in self.conforms]
        head = {"type": "Catalog", "id": "test", "stac_version": "1.0.0", "description": "of a test"}
        return {**head, "conformsTo": conforms, "links": links}

    def served(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return an item as the API serves it: the self link has the API's address, the canonical link is unchanged."""
        item = copy.deepcopy(item)
        links = [link for link in item["links"] if link["rel"] != "self"]
        href = f"{self.url}/collections/{COLLECTION}/items/{item['id']}"
        return {**item, "links": [{"rel": "self", "href": href}, *links]}

    def meets(self, item: dict[str, Any], query: dict[str, Any]) -> bool:
        """Return whether an item matches the body of a search."""
        if item["collection"] not in query.get("collections", [COLLECTION]):
            return False
        if "intersects" in query and not shape(item["geometry"]).intersects(shape(query["intersects"])):
            return False
        first, _, last = query.get("datetime", "../..").partition("/")
        acquired = item["properties"]["datetime"]
        if (first != ".." and acquired < first) or (last != ".." and acquired > last):
            return False
        max_cloud = query.get("query", {}).get("eo:cloud_cover", {}).get("lte", 100)
        return item["properties"].get("eo:cloud_cover", 0) <= max_cloud

    def page(self, query: dict[str, Any], trouble: str | int) -> dict[str, Any]:
        """Return a page of a search."""
        found = [self.served(i) for i in self.items if self.meets(i, query)]
        start, limit = query.get("token", 0), query.get("limit", 10)
        some = [] if trouble == "empty" else found[:limit] if trouble == "again" else found[start : start + limit]
        page: dict[str, Any] = {"type": "FeatureCollection", "features": some, "links": []}
        if self.matched is not None:
            total = len(found) + self.matched
            page |= {"context": {"matched": total}} if self.context else {"numberMatched": total}
        if start + limit < len(found):
            href = "/search" if self.relative else f"{self.url}/search"
            body = {"token": start + limit} if self.merge else {**query, "token": start + limit}
            link = {"rel": "next", "method": "POST", "href": href, "body": body, "merge": self.merge}
            if self.get:
                parameters = "&".join(f"{k}={json.dumps(v)}" for k, v in {**query, "token": start + limit}.items())
                link = {"rel": "next", "method": "GET", "href": f"{href}?{parameters}"}
            page["links"] = [link]
        return page

    def stop(self) -> None:
        """Stop the server and release its port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
