"""The store of http:// and https:// files, which are only read."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from kiln.errors import AccessError, SourceError, StorageError, TransientError
from kiln.io.fault import TRANSIENT_STATUS, connection_error, proxy_error, setup_error
from kiln.io.storage.store import Stat, read_again_if_cut
from kiln.io.storage.traffic import COUNTER

TIMEOUT_S = (10, 60)  # to connect, and between two bytes
NO_HEAD_STATUS = (405, 501)  # of servers that know no HEAD requests
RETRIED_STATUS = TRANSIENT_STATUS | {403}  # a denial is asked for again: firewalls and gateways deny now and then
MAX_RETRIES = 2  # of a request that gets no answer, or a status above
BACKOFF_S = 0.3  # before the second retry, twice as long before each further one
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")  # the first that is set counts
CONNECTION_ERRORS = (
    *(requests.ConnectionError, requests.Timeout),
    *(requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError),
)


class _Thread(threading.local):
    """The connections of one thread."""

    session: requests.Session | None = None


_THREAD = _Thread()


class HttpStore:
    """Files of web servers."""

    def stat(self, uri: str) -> Stat | None:
        """Return size and ETag, as far as the server gives them, or None where there is no file."""
        with http_errors(uri):
            response = _session().head(uri, timeout=TIMEOUT_S, allow_redirects=True)
            if response.status_code in NO_HEAD_STATUS:
                response = _session().get(uri, headers={"Range": "bytes=0-0"}, stream=True, timeout=TIMEOUT_S)
                response.close()
            if response.status_code in (404, 410):
                return None
            raise_for_status(response)
            return Stat(_size(response), _etag(response))

    def listing(self, prefix: str) -> dict[str, Stat]:
        """Raise StorageError: a web server lists no files."""
        raise StorageError(f"{prefix}: expected a folder or s3://, got a web address. http has no listing.")

    def read_bytes(self, uri: str) -> bytes:
        """Return a small file."""

        def read() -> bytes:
            with http_errors(uri):
                response = _session().get(uri, timeout=TIMEOUT_S)
                raise_for_status(response)
                return response.content

        return read_again_if_cut(read)

    def read_range(self, uri: str, first: int, last: int, etag: str) -> tuple[bytes, bool]:
        """Return bytes `first` to `last` and True; or all bytes and False from a server without ranges."""

        def read() -> tuple[bytes, bool]:
            with http_errors(uri):
                response = _session().get(uri, headers={"Range": f"bytes={first}-{last}"}, timeout=TIMEOUT_S)
                raise_for_status(response)
                if etag and _etag(response) not in ("", etag):
                    raise SourceError(f"{uri}: changed while it was read. Run again.")
                return response.content, response.status_code == 206

        return read_again_if_cut(read)

    def stream(self, uri: str, start: int, etag: str, chunk_bytes: int) -> tuple[int, Iterator[bytes]]:
        """Return the offset where the answer begins, and its bytes in chunks."""
        headers = {"Range": f"bytes={start}-", "If-Range": f'"{etag}"'} if start else {}
        with http_errors(uri):
            response = _session().get(uri, headers=headers, stream=True, timeout=TIMEOUT_S)
            raise_for_status(response)

        def chunks() -> Iterator[bytes]:
            with http_errors(uri):
                yield from response.iter_content(chunk_bytes)

        return (start if response.status_code == 206 else 0), chunks()

    def atomic(self, uri: str) -> AbstractContextManager[Path]:
        """Raise StorageError: a web server is only read."""
        raise StorageError(f"{uri}: expected a path or s3://, got a web address. Kiln cannot write over http.")

    def delete(self, uri: str) -> None:
        """Raise StorageError: a web server is only read."""
        raise StorageError(f"{uri}: expected a path or s3://, got a web address. Kiln cannot delete over http.")


@contextmanager
def http_errors(uri: str) -> Iterator[None]:
    """Raise Kiln's errors for those of requests, naming `uri`.

    Raises:
        ConfigError: A certificate or a proxy is at fault.
        TransientError: The connection broke or failed.
        StorageError: The address cannot be requested.
    """
    try:
        yield
    except CONNECTION_ERRORS as e:
        raise connection_error(uri, str(e)) from e
    except OSError as e:
        raise setup_error(uri, str(e)) or StorageError(f"{uri}: {e.strerror or e}") from e


def ca_bundle() -> str:
    """Return the file of certificate authorities for http; empty for those that requests brings."""
    return next((path for name in CA_VARIABLES if (path := os.environ.get(name))), "")


def proxy_of(url: str) -> str:
    """Return the URL of the proxy that requests takes for a URL; empty for none."""
    return requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url)) or ""


def raise_for_status(response: requests.Response) -> None:
    """Raise the error of the response's status, unless it is a success."""
    status = response.status_code
    if status == 407:
        raise proxy_error(response.url)
    if status in TRANSIENT_STATUS:
        raise TransientError(f"{response.url}: the server answers {status}. Try again later.")
    if status in (401, 403):
        raise AccessError(f"{response.url}: the server answers {status} {response.reason}. Check your access.")
    if status >= 400:
        raise SourceError(f"{response.url}: the server answers {status} {response.reason}")


def _session() -> requests.Session:
    """Return this thread's connections, which retry what another try may change."""
    if _THREAD.session is None:
        retry = Retry(MAX_RETRIES, status_forcelist=RETRIED_STATUS, backoff_factor=BACKOFF_S,
                      raise_on_status=False, retry_after_max=30)  # fmt: skip
        _THREAD.session = requests.Session()
        _THREAD.session.headers["Accept-Encoding"] = "identity"  # sizes, ranges and ETags are those of the file
        _THREAD.session.verify = ca_bundle() or True
        _THREAD.session.hooks["response"].append(_count)
        for scheme in ("http://", "https://"):
            _THREAD.session.mount(scheme, HTTPAdapter(max_retries=retry))
    return _THREAD.session


def _count(response: requests.Response, *_: Any, **__: Any) -> None:
    """Count an answer and those that were retried. Its length stands in its header; its bytes may come later."""
    has_body = response.request.method == "GET"
    retries = response.raw.retries
    retried = len(retries.history) if retries else 0
    COUNTER.count(int(response.headers.get("Content-Length", 0)) if has_body else 0, 1 + retried)


def _size(response: requests.Response) -> int:
    """Return the size of the file that an answer is about, without its body; -1 where the server does not state it."""
    if "Content-Encoding" in response.headers:  # the size is that of the compressed bytes
        return -1
    if response.status_code == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else -1
    return int(response.headers.get("Content-Length", -1))


def _etag(response: requests.Response) -> str:
    return response.headers.get("ETag", "").removeprefix("W/").strip('"')
