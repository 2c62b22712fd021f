"""A file server on loopback that can fail on request: for downloads, ranges, throttling and broken connections."""

import contextlib
import gzip
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class FileServer:
    """A server of `files` by path, for example {"/a.bin": b"..."}.

    These attributes can be changed while the server runs:
        status: every request gets this status code.
        denied: paths that are answered with 403.
        cuts: this many answers to GET end in the middle of their body.
        break_at: the connection is closed before the byte at this offset of a file is sent.
        ranges: with False, the header Range is ignored.
        heads: with False, HEAD requests are refused.
        compresses: `on request` of the header Accept-Encoding, or `always`; the ETag is weak then.
        hang: seconds before each response.
        fault: returns `cut` for a GET request whose body ends in the middle, `reset` for one whose connection is reset
            before an answer, else an empty text; given the path and the number of requests of GDAL for it so far. It is
            asked for GDAL's requests alone: as a firewall does, it lets other clients through.
        held: paths whose GET requests set the event `arrived` and wait for the event `release`.

    The server records all requests in order: `requests` lists (method, path, Range header), `payers` lists the header
    x-amz-request-payer.

    No two servers of a process have the same port. GDAL caches files by URL until the process ends, so a reused port
    could return the files of an earlier server.
    """

    ports: ClassVar[set[int]] = set()  # of all servers of this process

    def __init__(
        self,
        files: dict[str, bytes],
        *,
        etag: str = "one",
        status: int = 0,
        break_at: int | None = None,
        ranges: bool = True,
        hang: float = 0.0,
        body: bytes = b"",
    ) -> None:
        self.files, self.etag, self.status, self.break_at = files, etag, status, break_at
        self.ranges, self.hang, self.body = ranges, hang, body
        self.heads, self.compresses = True, ""
        self.cuts = 0
        self.denied: set[str] = set()
        self.held: set[str] = set()
        self.fault: Callable[[str, int], str] = lambda path, count: ""
        self.gdal_requests: Counter[str] = Counter()  # GET requests of GDAL by path
        self.arrived, self.release = threading.Event(), threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        self.payers: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a body follows its header at once, not 40 ms later

            def log_message(self, *args: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                if outer.heads:
                    self.answer(body=False)
                else:
                    outer.requests.append((self.command, self.path, None))
                    self.send_response(405)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def do_GET(self) -> None:
                self.answer(body=True)

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(body=True)

            do_POST = do_PUT
            do_DELETE = do_GET

            def answer(self, *, body: bool) -> None:
                path = self.path.partition("?")[0]
                byte_range = self.headers.get("Range")
                outer.requests.append((self.command, path, byte_range))
                outer.payers.append(self.headers.get("x-amz-request-payer"))
                if outer.hang:
                    time.sleep(outer.hang)
                if body and path in outer.held:
                    outer.arrived.set()
                    outer.release.wait(30)
                data = outer.files.get(path)
                status = 403 if path in outer.denied else outer.status or (404 if data is None else 200)
                if status >= 300 or data is None:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(outer.body)))
                    self.end_headers()
                    if body:
                        self.wfile.write(outer.body)
                    return
                fault = ""
                if body and "python" not in self.headers.get("User-Agent", "").lower():
                    fault = outer.fault(path, outer.gdal_requests[path])
                    outer.gdal_requests[path] += 1
                if fault == "reset":
                    linger = struct.pack("ii", 1, 0)  # closed at once, with an RST
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    self.close_connection = True
                    return
                asked = "gzip" in self.headers.get("Accept-Encoding", "")
                zipped = outer.compresses == "always" or (outer.compresses == "on request" and asked)
                if zipped:
                    data, byte_range = gzip.compress(data, mtime=0), None
                start, end = 0, len(data)
                same = self.headers.get("If-Range", f'"{outer.etag}"') == f'"{outer.etag}"'
                if byte_range and outer.ranges and same and (m := re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range)):
                    start, end = int(m[1]), min(int(m[2]) + 1, len(data)) if m[2] else len(data)
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
                else:
                    self.send_response(200)
                if zipped:
                    self.send_header("Content-Encoding", "gzip")
                elif outer.ranges:
                    self.send_header("Accept-Ranges", "bytes")
                if outer.etag:
                    self.send_header("ETag", f'{"W/" if zipped else ""}"{outer.etag}"')
                self.send_header("Content-Length", str(end - start))
                self.end_headers()
                if not body:
                    return
                if outer.cuts:
                    outer.cuts, fault = outer.cuts - 1, "cut"
                if fault == "cut":
                    self.wfile.write(data[start : (start + end) // 2])
                    self.close_connection = True
                    return
                if outer.break_at is not None and end > outer.break_at:
                    self.wfile.write(data[start : outer.break_at])
                    self.close_connection = True
                    return
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(data[start:end])

        class Server(ThreadingHTTPServer):
            request_queue_size = 64  # waiting connections; with the default, 5, the next one connects a second later

        with contextlib.ExitStack() as used:  # used ports stay bound until a new one is found
            while (server := Server(("127.0.0.1", 0), Handler)).server_address[1] in FileServer.ports:
                used.callback(server.server_close)
        self._server = server
        self._server.daemon_threads = True
        port = server.server_address[1]
        FileServer.ports.add(port)
        self.url = f"http://127.0.0.1:{port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the server and release its port."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
