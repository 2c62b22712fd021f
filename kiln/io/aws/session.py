"""Sessions and clients of boto3 for S3: whose credentials a bucket is read with, if any, and who pays.

boto3 is imported by the first request. Public buckets of archives need no credentials, whatever the profile.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from kiln.io.aws.errors import setting_error
from kiln.io.buckets import known_bucket

MAX_CONNECTIONS = 32  # of a client
FALSE = ("", "NO", "FALSE", "OFF", "0")  # values of switches, as GDAL reads them
_LOCK = threading.Lock()  # of sessions, which are not made for threads


def is_public(bucket: str) -> bool:
    """Return whether a bucket is known as one that everyone may read."""
    known = known_bucket(bucket)
    return known is not None and not known.requester_pays


def is_unsigned(bucket: str) -> bool:
    """Return whether requests to a bucket are unsigned: it is public, or AWS_NO_SIGN_REQUEST says so."""
    return is_public(bucket) or os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() not in FALSE


def requester_pays(bucket: str) -> bool:
    """Return whether the requester pays: the bucket is known for it, or AWS_REQUEST_PAYER says so."""
    known = known_bucket(bucket)
    if known is not None:
        return known.requester_pays
    return os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester"


def payer(bucket: str) -> dict[str, str]:
    """Return the parameter of requests to a bucket that names who pays, if the requester does."""
    return {"RequestPayer": "requester"} if requester_pays(bucket) else {}


def denial_hint(bucket: str) -> str:
    """Return what may be the reason for a denied request to a bucket, a clause."""
    if is_unsigned(bucket) and not is_public(bucket):
        return "AWS_NO_SIGN_REQUEST is set, so that requests have none"
    return "the bucket is requester-pays" if requester_pays(bucket) else "the bucket's policy decides"


def new_s3_client(bucket: str) -> Any:
    """Return a new boto3 client for a bucket.

    Raises:
        BotoCoreError: There are no credentials, or the settings are wrong.
        ConfigError: As BotoCoreError, where botocore raises another exception.
    """
    from botocore import UNSIGNED
    from botocore.config import Config

    options: dict[str, Any] = {
        "retries": {"mode": "standard", "max_attempts": 5},
        "max_pool_connections": MAX_CONNECTIONS,
    }
    if is_unsigned(bucket):
        options["signature_version"] = UNSIGNED
    with _LOCK, _setting_errors(bucket):
        return _session_for(bucket).client("s3", config=Config(**options))


def _session_for(bucket: str) -> Any:
    """Return the session for a bucket. For a public one, files and a profile that cannot be used are left out."""
    from botocore.exceptions import ConfigParseError, ProfileNotFound

    try:
        return _session()
    except (ConfigParseError, ProfileNotFound):
        if not is_public(bucket):
            raise
        return _session_without_files()


@cache
def _session() -> Any:
    """Return the session of all clients."""
    import boto3

    return boto3.Session()


@cache
def _session_without_files() -> Any:
    """Return a session without profile, config file and credentials file."""
    import boto3
    import botocore.session

    ignored = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    return boto3.Session(botocore_session=botocore.session.Session(session_vars=ignored))


def forget_sessions() -> None:
    """Drop sessions and credentials, after a change of AWS_* variables in this process."""
    _session.cache_clear()
    _session_without_files.cache_clear()


@contextmanager
def _setting_errors(bucket: str) -> Iterator[None]:
    """Raise ConfigError for the exceptions that are not botocore's own: of an endpoint, or of a credential_process."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError:
        raise
    except (OSError, ValueError) as e:
        raise setting_error(f"s3://{bucket}", e) from e
