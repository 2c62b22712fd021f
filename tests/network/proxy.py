"""A hostile network: a server of a folder whose connections and answers fail, as a seed decides.

Which request fails, and how, depends on the seed, the file and the number of the request for this file alone, not on
the order in which threads ask.
"""

import contextlib
import random
import re
import socket
import ssl
import struct
import threading
from collections import Counter
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from tests.network.certificates import Certificate

STATUSES = (403, 407, 408, 429, 500, 502, 503, 504)
IDLE_S = 30.0  # after which a connection without a request is closed
# Frames of HTTP/2: SETTINGS without content, then a WINDOW_UPDATE of 3 bytes, where the protocol demands 4.
FRAMES = b"\0\0\0\x04\0\0\0\0\0" + b"\0\0\x03\x08\0\0\0\0\0" + b"\xff\xff\xff"


class Fault(StrEnum):
    """What goes wrong with a request."""

    RESET = "reset"  # before the answer
    RESET_IN_BODY = "reset in body"
    CUT_IN_BODY = "cut in body"  # an orderly end in the middle
    STALL = "stall"  # no answer
    STALL_IN_BODY = "stall in body"
    SHORT_LENGTH = "short length"  # Content-Length is less than the body, which ends there
    LONG_LENGTH = "long length"  # Content-Length is more than the body
    STATUS = "status"  # one of STATUSES
    TLS_CLOSED = "TLS closed"  # in the handshake of the next connection, or in the middle of a body without a goodbye
    HTTP2 = "HTTP/2"  # framing errors on the next connection of a client that offers it


class HostileProxy:
    """A server of a folder's files, which answers honestly until `become`.

    The path of an address is that of the file in the folder. To a client of S3 its first part is the bucket.

    Attributes:
        faults: The faults that were made since `become`, by kind.
        url: The address, `https://` with a certificate.
    """

    ports: ClassVar[set[int]] = set()  # of all proxies of this process: GDAL keeps what it knows of an address

    def __init__(self, folder: Path, certificate: Certificate | None = None) -> None:
        self.folder = folder
        self.stopped = threading.Event()
        self._seed, self._rate = 0, 0.0
        self.faults: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._connections = 0
        self._lock = threading.Lock()
        self._contexts = _contexts(certificate) if certificate else {}
        proxy = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                if connection := proxy.accept(request):
                    super().process_request_thread(connection, client_address)
                else:
                    self.shutdown_request(request)

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the client broke off

        with contextlib.ExitStack() as used:  # used ports stay bound until a new one is found
            while (server := Server(("127.0.0.1", 0), _handler(self))).server_address[1] in self.ports:
                used.callback(server.server_close)
        self._server = server
        port = server.server_address[1]
        self.ports.add(port)
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{port}"
        self._thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def become(self, seed: int, rate: float) -> None:
        """Forget all requests; from now on a fraction `rate` of them fails, as the seed decides."""
        with self._lock:
            self._seed, self._rate, self._connections = seed, rate, 0
            self._requests, self.faults = Counter(), Counter()

    def stop(self) -> None:
        """Stop serving and release the port."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def accept(self, connection: socket.socket) -> socket.socket | None:
        """Return a new connection, with TLS if there is a certificate; None if it fails."""
        connection.settimeout(IDLE_S)
        if not self._contexts:
            return connection
        with self._lock:
            self._connections += 1
            choice = random.Random(f"{self._seed}:connection:{self._connections}")
        fault = choice.choice((Fault.TLS_CLOSED, Fault.HTTP2)) if choice.random() < self._rate else None
        if fault is Fault.TLS_CLOSED:
            self._count(fault)
            with contextlib.suppress(OSError):
                connection.recv(16)
            return None
        try:
            secured = self._contexts["h2" if fault else "http/1.1"].wrap_socket(connection, server_side=True)
        except OSError:
            return None
        if secured.selected_alpn_protocol() == "h2":
            self._count(Fault.HTTP2)
            with contextlib.suppress(OSError):
                secured.recv(1 << 14)
                secured.sendall(FRAMES)
                secured.recv(1 << 14)
                secured.close()
            return None
        return secured

    def fault(self, path: str) -> tuple[Fault | None, random.Random]:
        """Return the fault of the next request for a path, or None, with the numbers that decide its details."""
        with self._lock:
            number = self._requests[path]
            self._requests[path] += 1
        choice = random.Random(f"{self._seed}:{path}:{number}")
        fault = choice.choice(list(Fault)) if choice.random() < self._rate else None
        if fault is Fault.HTTP2:  # of connections alone
            fault = Fault.RESET
        if fault:
            self._count(fault)
        return fault, choice

    def _count(self, fault: Fault) -> None:
        with self._lock:
            self.faults[fault] += 1


def _contexts(certificate: Certificate) -> dict[str, ssl.SSLContext]:
    """Return the TLS settings by the protocol that they offer."""
    contexts = {protocol: ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for protocol in ("http/1.1", "h2")}
    for protocol, context in contexts.items():
        context.load_cert_chain(certificate.certificate, certificate.key)
        context.set_alpn_protocols([protocol])
    return contexts


def _handler(proxy: HostileProxy) -> type[BaseHTTPRequestHandler]:
    """Return the class that answers the requests of a proxy."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].lstrip("/")
            fault, choice = proxy.fault(path)
            if fault is Fault.RESET:
                return self.reset()
            if fault is Fault.STALL:
                return self.stall()
            file = proxy.folder / path
            if fault is Fault.STATUS or not file.is_file():
                return self.refuse(choice.choice(STATUSES) if fault else 404)
            data = file.read_bytes()
            whole, status, first = len(data), 200, 0
            if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                first, last = int(span[1]), min(int(span[2] or whole), whole - 1)
                data, status = data[first : last + 1], 206
            length = len(data)
            if fault is Fault.SHORT_LENGTH:
                length, data = length // 2, data[: length // 2]
            elif fault is Fault.LONG_LENGTH:
                length += 1000
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("ETag", f'"{whole}"')
            self.send_header("Accept-Ranges", "bytes")
            if status == 206:
                self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{whole}")
            self.end_headers()
            if not body:
                return None
            in_body = (Fault.RESET_IN_BODY, Fault.CUT_IN_BODY, Fault.STALL_IN_BODY, Fault.TLS_CLOSED)
            self.wfile.write(data[: choice.randrange(len(data))] if fault in in_body else data)
            if fault is Fault.RESET_IN_BODY:
                return self.reset()
            if fault is Fault.STALL_IN_BODY:
                return self.stall()
            if fault in (Fault.CUT_IN_BODY, Fault.LONG_LENGTH, Fault.TLS_CLOSED):
                self.close(goodbye=fault is not Fault.TLS_CLOSED)
            return None

        def refuse(self, status: int) -> None:
            """Answer with a status and no body."""
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def stall(self) -> None:
            """Send nothing more, until the client goes."""
            self.connection.settimeout(IDLE_S)
            with contextlib.suppress(OSError):
                while self.connection.recv(1 << 14) and not proxy.stopped.is_set():
                    pass
            self.close_connection = True

        def reset(self) -> None:
            """End the connection with an RST."""
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()  # now, so that the server does not end it in an orderly way first
            self.close_connection = True

        def close(self, *, goodbye: bool) -> None:
            """End the connection; with TLS, `goodbye` states that all was sent."""
            if goodbye and isinstance(self.connection, ssl.SSLSocket):
                self.connection.settimeout(1)
                with contextlib.suppress(OSError):
                    self.connection.unwrap()
            self.close_connection = True

    return Handler
