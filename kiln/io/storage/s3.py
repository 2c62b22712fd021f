"""The store of S3 objects. Credentials, region and endpoint come from the usual AWS_* variables.

A PUT, or a completed multipart upload, makes an object appear at once. boto3 is imported by the first request.
"""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kiln.errors import ConfigError, StorageError, TransientError
from kiln.io.aws.errors import answer_error, answer_setup_error, error_of, status_of
from kiln.io.aws.session import Keys, current_keys, denial_hint, new_s3_client, payer
from kiln.io.aws.settings import S3Settings, settings_of
from kiln.io.fault import setup_error
from kiln.io.storage.local import write_errors
from kiln.io.storage.store import Stat, read_again_if_cut
from kiln.io.storage.temporary import temporary_folder
from kiln.io.storage.traffic import COUNTER
from kiln.io.storage.uri import join, split_s3

log = logging.getLogger(__name__)
NO_REASON_STATUS = (400, 401, 403)  # of answers to HEAD: an expired token, a wrong clock or a real denial
NO_CONDITION_STATUS = (400, 405, 501)  # of stores that know no conditional PUT
READING = ("GetObject", "HeadObject", "ListObjectsV2")  # operations that are counted as traffic


@cache
def s3_client(bucket: str) -> Any:
    """Return the boto3 client for a bucket, whose reading requests are counted. Call it inside `s3_errors`."""
    client = new_s3_client(bucket)
    client.meta.events.register("after-call.s3", _count)
    return client


def s3_settings(bucket: str) -> S3Settings:
    """Return where a bucket is and how requests to it are made, for other libraries.

    Raises:
        ConfigError: The settings are wrong, or there are no credentials where requests are signed.
    """
    with s3_errors(f"s3://{bucket}"):
        return settings_of(s3_client(bucket), bucket)


def s3_keys(bucket: str) -> Keys | None:
    """Return the credentials for a bucket, for other libraries; None for unsigned requests.

    Ask again before each use: those of a role are replaced from time to time.

    Raises:
        ConfigError: There are none, or they cannot be renewed.
        TransientError: The service that they come from does not answer.
    """
    with s3_errors(f"s3://{bucket}"):
        return current_keys(bucket)


def require_conditional_put(prefix: str) -> None:
    """Check with two small objects that a store creates an object only if there is none of its name.

    LanceDB commits by such requests (`If-None-Match: *`). A store that ignores the condition causes a warning: there
    two jobs that write one database at a time damage it.

    Args:
        prefix: s3:// URI below which an object is written, and deleted again.

    Raises:
        ConfigError: The store refuses such requests.
    """
    from botocore.exceptions import ClientError

    bucket, key = split_s3(join(prefix, "state", f"conditional-put-{uuid.uuid4().hex}"))
    with s3_errors(prefix):
        client, condition = s3_client(bucket), {"Bucket": bucket, "Key": key, "IfNoneMatch": "*"}
        try:
            client.put_object(**condition)
        except ClientError as e:
            if status_of(e) not in NO_CONDITION_STATUS or answer_setup_error(prefix, e):
                raise
            raise ConfigError(
                f"{prefix}: expected a store with conditional PUT (If-None-Match), which LanceDB needs, got `{e}`. "
                "Update the store, or take another one or a disk for the results. Shards and products need none of it."
            ) from e
        try:
            client.put_object(**condition)
        except ClientError as e:
            if status_of(e) not in (409, 412):
                raise
        else:
            log.warning(
                "%s: the store ignores If-None-Match. Let only one job at a time write the database: two would damage "
                "it.", prefix,
            )  # fmt: skip
        finally:
            client.delete_object(Bucket=bucket, Key=key)


class S3Store:
    """Objects of S3, or of a store that speaks its protocol."""

    def stat(self, uri: str) -> Stat | None:
        """Return size and ETag of an object, or None where there is none, as for a bucket."""
        bucket, key = split_s3(uri)
        if not key:
            return None
        with s3_errors(uri):
            client = s3_client(bucket)
            try:
                head = client.head_object(Bucket=bucket, Key=key, **payer(bucket))
            except client.exceptions.ClientError as e:
                if status_of(e) == 404:
                    return None
                if status_of(e) in NO_REASON_STATUS:
                    _get(uri).close()  # raises the reason, which stands in the body that answers to HEAD have not
                    raise TransientError(f"{uri}: the store denied a request and granted the next. Try again.") from e
                raise
            return Stat(head["ContentLength"], head["ETag"].strip('"'))

    def listing(self, prefix: str) -> dict[str, Stat]:
        """Return every object below a prefix, with one request per thousand."""
        bucket, key = split_s3(join(prefix, ""))
        stats: dict[str, Stat] = {}
        with s3_errors(prefix):
            paginator = s3_client(bucket).get_paginator("list_objects_v2")
            for page in paginator.paginate(Bucket=bucket, Prefix=key, **payer(bucket)):
                for entry in page.get("Contents", []):
                    modified = int(entry["LastModified"].timestamp() * 1e9)
                    stats[f"s3://{bucket}/{entry['Key']}"] = Stat(entry["Size"], entry["ETag"].strip('"'), modified)
        return stats

    def read_bytes(self, uri: str) -> bytes:
        """Return a small object."""

        def read() -> bytes:
            with s3_errors(uri):
                data: bytes = _get(uri).read()
            return data

        return read_again_if_cut(read)

    def read_range(self, uri: str, first: int, last: int, etag: str) -> tuple[bytes, bool]:
        """Return bytes `first` to `last` inclusive, and True."""
        version = {"IfMatch": f'"{etag}"'} if etag else {}

        def read() -> bytes:
            with s3_errors(uri):
                data: bytes = _get(uri, Range=f"bytes={first}-{last}", **version).read()
            return data

        return read_again_if_cut(read), True

    def stream(self, uri: str, start: int, etag: str, chunk_bytes: int) -> tuple[int, Iterator[bytes]]:
        """Return `start` and the bytes from there in chunks. Raises SourceError for another version."""
        span = {"Range": f"bytes={start}-"} if start else {}
        with s3_errors(uri):
            body = _get(uri, IfMatch=f'"{etag}"', **span)

        def chunks() -> Iterator[bytes]:
            with s3_errors(uri):
                yield from body.iter_chunks(chunk_bytes)

        return start, chunks()

    @contextmanager
    def atomic(self, uri: str) -> Iterator[Path]:
        """Yield a temporary local path; upload it at the end of the block."""
        bucket, key = split_s3(uri)
        with temporary_folder() as folder:
            path = Path(folder) / Path(uri).name
            with write_errors(path):
                yield path
            with s3_errors(uri):
                from boto3.exceptions import S3UploadFailedError

                try:
                    s3_client(bucket).upload_file(str(path), bucket, key)
                except S3UploadFailedError as e:
                    raise e.__cause__ or e.__context__ or e from None  # the ClientError, which has a code

    def delete(self, uri: str) -> None:
        """Delete an object if there is one."""
        bucket, key = split_s3(uri)
        with s3_errors(uri):
            s3_client(bucket).delete_object(Bucket=bucket, Key=key)


@contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Raise Kiln's errors for those of boto3, naming `uri`."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as e:
        raise answer_error(uri, e, denial_hint(split_s3(uri)[0])) from e
    except BotoCoreError as e:
        if (error := error_of(uri, e)) is None:
            raise
        raise error from e
    except OSError as e:
        raise setup_error(uri, str(e)) or StorageError(f"{uri}: {e.strerror or e}") from e


def _get(uri: str, **options: str) -> Any:
    """Return the body of an object."""
    bucket, key = split_s3(uri)
    return s3_client(bucket).get_object(Bucket=bucket, Key=key, **options, **payer(bucket))["Body"]


def _count(http_response: Any, parsed: Any, model: Any, **_: Any) -> None:
    """Count an answer of boto3 that reads, and those that were retried."""
    if model.name in READING:
        has_body = model.name == "GetObject"
        retried = parsed["ResponseMetadata"].get("RetryAttempts", 0)
        COUNTER.count(int(http_response.headers.get("Content-Length", 0)) if has_body else 0, 1 + retried)
