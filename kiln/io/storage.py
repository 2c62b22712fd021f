"""One road to files: local paths and `s3://` read and written alike, `http(s)://` read.

A file exists or it does not: local files are written under a temporary name, synced and renamed; on S3 one PUT or
a completed multipart upload does the same. Credentials, region and endpoint come from the usual AWS_* variables.
"""

import errno
import hashlib
import os
import shutil
import socket
import stat as stat_
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from kiln.errors import AccessError, ConfigError, SourceError, StorageError, TransientError
from kiln.io.buckets import known_bucket

DISK = {  # what a disk says that a person can mend
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
}
RANGE, RANGES = 16 << 20, 8  # bytes of a ranged read, and how many at a time
CHUNK = 1 << 22  # bytes read at a time
TIMEOUT = (10, 60)  # seconds to connect, and between bytes
BROKEN = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)  # of a connection
TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
TRANSIENT_CODES = {"SlowDown", "Throttling", "RequestTimeout", "InternalError", "ServiceUnavailable", "503", "500"}

_THREAD = threading.local()


@dataclass(frozen=True)
class Stat:
    """Size in bytes and ETag (empty where the store has none, as on a disk)."""

    size: int
    etag: str = ""
    modified: int = field(default=0, compare=False)  # nanoseconds, of a local file


def is_s3(uri: str) -> bool:
    """Whether `uri` names an S3 object or prefix."""
    return str(uri).startswith("s3://")


def is_http(uri: str) -> bool:
    """Whether `uri` is read over http or https."""
    return str(uri).startswith(("http://", "https://"))


def is_remote(uri: str) -> bool:
    """Whether `uri` is anywhere but on this machine's disks."""
    return is_s3(uri) or is_http(uri)


def _path(uri: str) -> Path:
    """A local path. Raises ConfigError for a store that Kiln does not know."""
    if "://" in str(uri):
        raise ConfigError(f"{uri}: Kiln reads and writes paths and s3://, and reads http:// and https://")
    return Path(uri)


def join(root: str, *parts: str) -> str:
    """`root/part/part`, for paths and URIs alike."""
    return "/".join([str(root).rstrip("/"), *parts]) if str(root) else "/".join(parts)


def split_s3(uri: str) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _payer(bucket: str) -> dict[str, str]:
    known = known_bucket(bucket)
    return {"RequestPayer": "requester"} if known and known.requester_pays else {}


@cache
def s3_client(bucket: str) -> Any:
    """A boto3 client for a bucket, retrying as AWS advises; without credentials for the public archives."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    options: dict[str, Any] = {"retries": {"mode": "standard", "max_attempts": 5}, "max_pool_connections": 32}
    known = known_bucket(bucket)
    if known and not known.requester_pays:
        options["signature_version"] = UNSIGNED
    return boto3.client("s3", config=Config(**options))


def _web() -> requests.Session:
    """This thread's connections; a server that asks to slow down is asked again, a few times, as it says."""
    if not hasattr(_THREAD, "web"):
        again = Retry(total=None, connect=0, read=0, status=3, status_forcelist=(429, 503), backoff_factor=0.3,
                      raise_on_status=False, retry_after_max=30)  # fmt: skip
        _THREAD.web = requests.Session()
        for scheme in ("http://", "https://"):
            _THREAD.web.mount(scheme, HTTPAdapter(max_retries=again))
    return _THREAD.web


@contextmanager
def named_errors(uri: str) -> Iterator[None]:
    """Turn what stores say into SourceError (would fail again), TransientError or StorageError, naming `uri`.

    No credentials at all are a ConfigError.
    """
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, NoCredentialsError

    try:
        yield
    except ClientError as e:
        code = e.response.get("Error", {}).get("Code", "")
        status = e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in TRANSIENT_CODES or status in TRANSIENT_STATUS:
            raise TransientError(f"{uri}: the store answers {code or status}; try again later") from e
        if status == 412:
            raise SourceError(f"{uri}: changed while it was read") from e
        if status == 404:
            raise SourceError(f"{uri}: does not exist") from e
        if status in (401, 403):
            pays = _payer(split_s3(uri)[0])
            hint = (
                "the bucket is requester-pays, and who asks must be allowed to pay" if pays else "the bucket's policy"
            )
            raise AccessError(f"{uri}: access denied ({code}); check the credentials: {hint}") from e
        raise StorageError(f"{uri}: {e}") from e
    except NoCredentialsError as e:
        raise ConfigError(f"{uri}: no AWS credentials found; set AWS_PROFILE or AWS_ACCESS_KEY_ID") from e
    except (ConnectionError, HTTPClientError, *BROKEN) as e:
        raise TransientError(f"{uri}: the connection broke, or there was none: {e}") from e
    except FileNotFoundError as e:
        raise SourceError(f"{uri}: does not exist") from e
    except OSError as e:
        raise StorageError(f"{uri}: {e.strerror or e}") from e


def http_check(response: requests.Response) -> requests.Response:
    """The response, if it is a success; else AccessError, SourceError or TransientError by its status."""
    if response.status_code in TRANSIENT_STATUS:
        raise TransientError(f"{response.url}: the server answers {response.status_code}; try again later")
    if response.status_code in (401, 403):
        raise AccessError(f"{response.url}: the server answers {response.status_code} {response.reason}")
    if response.status_code >= 400:
        raise SourceError(f"{response.url}: the server answers {response.status_code} {response.reason}")
    return response


def stat(uri: str) -> Stat | None:
    """Size and ETag, or None where nothing is. Raises TransientError, SourceError (no access), StorageError."""
    with named_errors(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            try:
                head = s3_client(bucket).head_object(Bucket=bucket, Key=key, **_payer(bucket))
            except s3_client(bucket).exceptions.ClientError as e:
                if e.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
            return Stat(head["ContentLength"], head["ETag"].strip('"'))
        if is_http(uri):
            response = _web().head(uri, timeout=TIMEOUT, allow_redirects=True)
            if response.status_code in (404, 410):
                return None
            http_check(response)
            return Stat(int(response.headers.get("Content-Length", -1)), _etag(response))
        return _on_disk(_path(uri))


def _on_disk(path: Path) -> Stat | None:
    """What lies at a local path, if it is a file; others may rename and remove meanwhile."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stat(found.st_size, modified=found.st_mtime_ns) if stat_.S_ISREG(found.st_mode) else None


def listing(prefix: str) -> dict[str, Stat]:
    """Every file below a folder or S3 prefix, by its full name, in order. One request per thousand on S3."""
    if is_http(prefix):
        raise StorageError(f"{prefix}: http has no listing")
    found: dict[str, Stat] = {}
    with named_errors(prefix):
        if is_s3(prefix):
            bucket, key = split_s3(join(prefix, ""))
            pages = (
                s3_client(bucket).get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key, **_payer(bucket))
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    found[f"s3://{bucket}/{entry['Key']}"] = Stat(entry["Size"], entry["ETag"].strip('"'))
        else:
            for path in _path(prefix).rglob("*"):
                if here := _on_disk(path):
                    found[join(prefix, path.relative_to(prefix).as_posix())] = here
    return dict(sorted(found.items()))


def read_bytes(uri: str) -> bytes:
    """The whole of a small file. Raises SourceError where nothing is."""
    with named_errors(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            return s3_client(bucket).get_object(Bucket=bucket, Key=key, **_payer(bucket))["Body"].read()
        if is_http(uri):
            return http_check(_web().get(uri, timeout=TIMEOUT)).content
        return _path(uri).read_bytes()


def check_whole(uri: str, source: Stat) -> None:
    """Read a remote file through once, in parallel ranges, and keep nothing: what fails may be the way or the file.

    Raises SourceError if it is another version by now; TransientError if less of it comes than there should be.
    """
    if source.size < 0:  # a server that tells no size
        read_bytes(uri)
        return
    spans = [(a, min(a + RANGE, source.size) - 1) for a in range(0, source.size, RANGE)]
    first, ranged = _range(uri, *spans[0], source.etag)
    came = len(first)
    if ranged and len(spans) > 1:
        with ThreadPoolExecutor(RANGES) as pool:
            came += sum(pool.map(lambda s: len(_range(uri, *s, source.etag)[0]), spans[1:]))
    if came != source.size:
        raise TransientError(f"{uri}: {came} of {source.size} bytes came; try again")


def _range(uri: str, first: int, last: int, etag: str) -> tuple[bytes, bool]:
    """Bytes `first` to `last`, and whether the server knows ranges: else it is all of them."""
    wanted = f"bytes={first}-{last}"
    with named_errors(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            same = {"IfMatch": f'"{etag}"'} if etag else {}
            answer = s3_client(bucket).get_object(Bucket=bucket, Key=key, Range=wanted, **same, **_payer(bucket))
            return answer["Body"].read(), True
        response = http_check(_web().get(uri, headers={"Range": wanted}, timeout=TIMEOUT))
        if etag and _etag(response) not in ("", etag):
            raise SourceError(f"{uri}: changed while it was read")
        return response.content, response.status_code == 206


def _etag(response: requests.Response) -> str:
    return response.headers.get("ETag", "").removeprefix("W/").strip('"')


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")


def sweep(uri: str) -> None:
    """Remove what killed processes of this machine left of a local file they were writing."""
    path = Path(uri)
    if is_remote(uri) or not path.parent.is_dir():
        return
    for left in path.parent.glob(f".{path.name}.{socket.gethostname()}.*.partial"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _alive(int(pid)):
            left.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, and alive
        return True
    return True


@contextmanager
def atomic(uri: str) -> Iterator[Path]:
    """A local path to write to; at the end of the block it becomes `uri`, whole, or after an error nothing does.

    Raises StorageError for a full disk or a place that cannot be written.
    """
    if is_http(uri):
        raise StorageError(f"{uri}: cannot write over http")
    if is_s3(uri):
        with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
            path = Path(folder) / Path(uri).name
            with _writable(path):
                yield path
            with named_errors(uri):
                bucket, key = split_s3(uri)
                from boto3.exceptions import S3UploadFailedError

                try:
                    s3_client(bucket).upload_file(str(path), bucket, key)
                except S3UploadFailedError as e:
                    raise e.__cause__ or e.__context__ or e from None  # the ClientError, which tells its kind
        return
    target = _path(uri)
    partial = _partial(target)
    with _writable(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(uri)
        partial.touch()
        try:
            yield partial
            with partial.open("rb+") as f:
                os.fsync(f.fileno())
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _writable(target: Path) -> Iterator[None]:
    """StorageError for what a disk says while it is written to."""
    try:
        yield
    except OSError as e:
        if e.errno not in DISK:
            raise
        why = os.strerror(e.errno)
        raise StorageError(f"{target}: cannot be written: {why}; nothing partial was left behind") from e


def write_bytes(uri: str, data: bytes) -> None:
    """Put a small file in place, whole or not at all."""
    with atomic(uri) as path:
        path.write_bytes(data)


def delete(uri: str) -> None:
    """Remove one file; a missing one is fine."""
    with named_errors(uri):
        if is_s3(uri):
            bucket, key = split_s3(uri)
            s3_client(bucket).delete_object(Bucket=bucket, Key=key)
        else:
            Path(uri).unlink(missing_ok=True)


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """The file on this machine: itself where it is local, else a download that is gone after the block."""
    if not is_remote(uri):
        if not Path(uri).is_file():
            raise SourceError(f"{uri}: does not exist")
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="kiln-") as folder:
        path = Path(folder) / Path(uri).name
        fetch(uri, path)
        yield path


def fetch(uri: str, path: Path) -> None:
    """Copy a file to `path`, going on where an earlier, interrupted copy of the same version stopped.

    What is there already is kept only beside a note (`<path>.etag`) of the version it came from; a server without
    ETag or ranges is read from the start. Raises SourceError, TransientError or StorageError.
    """
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        source = stat(uri)
        if source is None:
            raise SourceError(f"{uri}: does not exist")
        if not is_remote(uri):
            shutil.copyfile(uri, path)
            return
        note = path.with_name(path.name + ".etag")
        have = path.stat().st_size if path.exists() else 0
        if not (have and source.etag and note.exists() and note.read_text() == source.etag and have <= source.size):
            have = 0
        note.write_text(source.etag)
        if not have:
            path.write_bytes(b"")
        if have != source.size:
            with named_errors(uri):
                start, chunks = _chunks(uri, have, source)
                with path.open("rb+") as f:
                    f.truncate(start)
                    f.seek(start)
                    for chunk in chunks:
                        f.write(chunk)
        size = path.stat().st_size
        if source.size >= 0 and size != source.size:
            raise TransientError(f"{uri}: {size} of {source.size} bytes came; run again and it goes on from there")
        note.unlink()


def _chunks(uri: str, start: int, source: Stat) -> tuple[int, Iterator[bytes]]:
    """Where the answer begins, `start` or 0 from a server without ranges, and its bytes, a few megabytes at a time."""
    if is_s3(uri):
        bucket, key = split_s3(uri)
        where = {"Range": f"bytes={start}-"} if start else {}
        body = s3_client(bucket).get_object(
            Bucket=bucket, Key=key, IfMatch=f'"{source.etag}"', **where, **_payer(bucket)
        )["Body"]
        return start, body.iter_chunks(CHUNK)
    headers = {"Range": f"bytes={start}-", "If-Range": f'"{source.etag}"'} if start else {}
    response = http_check(_web().get(uri, headers=headers, stream=True, timeout=TIMEOUT))
    return (start if response.status_code == 206 else 0), response.iter_content(CHUNK)


def sha256(path: Path) -> str:
    """Hex digest of a local file."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
