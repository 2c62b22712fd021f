"""A server in front of the simulated S3: it can refuse requests, demand credentials of the hour, and speak TLS."""

import datetime
import http.client
import ipaddress
import json
import re
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TIMEOUT_S = 30
LIFETIME_S = 600  # of credentials: less than botocore's limit to renew them, 15 minutes
DROPPED = ("connection", "transfer-encoding", "keep-alive", "expect")  # headers of one connection


class S3Front:
    """A server on loopback that forwards requests.

    Attributes:
        url: Its address.
        refuse: Returns status and code of an S3 error for a request, or None to forward it; given its handler.
        requests: Method and path of every request, in order.
    """

    def __init__(self, upstream: str, refuse: Callable[[Any], tuple[int, str] | None], certificate: Path | None = None):
        self.refuse, self.requests = refuse, list[tuple[str, str]]()
        outer, target = self, urlsplit(upstream).netloc

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = TIMEOUT_S

            def log_message(self, *args: Any) -> None:
                pass

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0) or 0))
                outer.requests.append((self.command, self.path))
                if refusal := outer.refuse(self):
                    status, code = refusal
                    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
                    self.answer(status, {}, text.encode())
                    return
                connection = http.client.HTTPConnection(target, timeout=TIMEOUT_S)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in DROPPED}
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                data = response.read()
                self.answer(response.status, dict(response.getheaders()), data)
                connection.close()

            def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in (*DROPPED, "server", "date", "content-length"):
                        self.send_header(name, value)
                length = next((v for k, v in headers.items() if k.lower() == "content-length"), str(len(data)))
                self.send_header("Content-Length", length if self.command == "HEAD" else str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

        class Server(ThreadingHTTPServer):
            request_queue_size = 64
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Print nothing: clients close connections, and some refuse the certificate."""

        self._server = Server(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"http{'s' if certificate else ''}://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT_S)


class RotatingRole:
    """The credentials of a role, from a server as containers have it. Every `uses` requests to S3 they are replaced.

    The store takes the newest keys, and those before them for `grace` more requests: a request may be under way when
    they are replaced. Older ones are refused as expired.
    """

    def __init__(self, uses: int, grace: int) -> None:
        self.uses, self.grace = uses, grace
        self.generation, self.served, self.refused = 0, 0, 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            timeout = TIMEOUT_S

            def log_message(self, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=outer.lifetime_s)
                with outer._lock:
                    keys = {"AccessKeyId": f"KEY{outer.generation:05d}", "SecretAccessKey": "s", "Token": "t"}
                body = json.dumps({**keys, "Expiration": expires.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self.lifetime_s = LIFETIME_S
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/role"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def refuse(self, handler: Any) -> tuple[int, str] | None:
        """Return the error for old keys, and count the request."""
        key = re.search(r"Credential=KEY(\d+)/", handler.headers.get("Authorization", ""))
        with self._lock:
            if key is None:
                return 403, "AccessDenied"
            generation = int(key[1])
            fresh = generation == self.generation or (generation == self.generation - 1 and self.served < self.grace)
            if not fresh:
                self.refused += 1
                return 400, "ExpiredToken"
            self.served += 1
            if self.served >= self.uses:
                self.served, self.generation = 0, self.generation + 1
        return None

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT_S)


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a certificate authority of one's own, and a certificate of 127.0.0.1 with its key. Return both paths."""
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of the tests")])
    host = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    authority_key, host_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(subject: x509.Name, key: Any, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    authority_path, host_path = folder / "authority.pem", folder / "host.pem"
    authority_path.write_bytes(certificate(name, authority_key, (x509.BasicConstraints(True, None), True)))
    key_text = host_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    host_path.write_bytes(certificate(host, host_key, (address, False)) + key_text)
    return authority_path, host_path
