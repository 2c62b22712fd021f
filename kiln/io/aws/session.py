"""Sessions and clients of boto3 for S3: whose credentials a bucket is read with, if any, and who pays.

boto3 is imported by the first request. Public buckets of archives need no credentials, whatever the profile.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from kiln.io.aws.errors import setting_error
from kiln.io.buckets import known_bucket

AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")  # of S3
TIMEOUT_S = (10, 60)  # to connect, and between two bytes
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


class SessionPair(NamedTuple):
    """A session of botocore, and that of boto3 on it, which has the clients."""

    botocore: Any
    boto3: Any


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
        "connect_timeout": TIMEOUT_S[0],
        "read_timeout": TIMEOUT_S[1],
    }
    if is_unsigned(bucket):
        options["signature_version"] = UNSIGNED
    known, config = known_bucket(bucket), Config(**options)
    with _LOCK, _setting_errors(bucket):
        session = _session_for(bucket).boto3
        client = session.client("s3", region_name=known.region if known else None, config=config)
        if known and not is_aws(client.meta.endpoint_url):  # a copy, in the region of that store
            client = session.client("s3", config=config)
        return client


def is_aws(endpoint: str) -> bool:
    """Return whether a URL is of S3 of AWS, and not of another store that speaks its protocol."""
    return (urlsplit(endpoint).hostname or "").endswith(AWS_DOMAINS)


def ca_bundle(bucket: str) -> str:
    """Return the file of certificate authorities for requests to a bucket; empty for botocore's own."""
    configured = _session_for(bucket).botocore.get_config_variable("ca_bundle")
    return str(configured or os.environ.get("REQUESTS_CA_BUNDLE", ""))


def region(bucket: str) -> str:
    """Return the region that is set for requests to a bucket of no archive; empty for none."""
    return str(_session_for(bucket).botocore.get_config_variable("region") or "")


class Keys(NamedTuple):
    """The credentials of one moment. Those of a role are replaced every few hours at most.

    Attributes:
        access_key: Id of the key.
        secret_key: The key.
        token: Token of a role's session; empty for the keys of a user.
        source: botocore's name of where they come from, such as `sso` or `container-role`.
    """

    access_key: str
    secret_key: str
    token: str
    source: str


def current_keys(bucket: str) -> Keys | None:
    """Return the credentials for a bucket, renewed if they expire soon; None if its requests are unsigned.

    Raises:
        BotoCoreError, ClientError: There are none, or they cannot be renewed.
        ConfigError: As BotoCoreError, where botocore raises another exception.
    """
    from botocore.exceptions import NoCredentialsError

    if is_unsigned(bucket):
        return None
    with _setting_errors(bucket):
        with _LOCK:
            credentials = _session_for(bucket).botocore.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        keys = credentials.get_frozen_credentials()
    return Keys(keys.access_key, keys.secret_key, keys.token or "", credentials.method)


def _session_for(bucket: str) -> SessionPair:
    """Return the session for a bucket. For a public one, files and a profile that cannot be used are left out."""
    from botocore.exceptions import ConfigParseError, ProfileNotFound

    try:
        return _session()
    except (ConfigParseError, ProfileNotFound):
        if not is_public(bucket):
            raise
        return _session_without_files()


@cache
def _session() -> SessionPair:
    """Return the session of all clients."""
    return _pair({})


@cache
def _session_without_files() -> SessionPair:
    """Return a session without profile, config file and credentials file."""
    return _pair(
        {
            "profile": (None, None, None, None),
            "config_file": (None, None, os.devnull, None),
            "credentials_file": (None, None, os.devnull, None),
        }
    )


def _pair(variables: dict[str, tuple[Any, ...]]) -> SessionPair:
    import boto3
    import botocore.session

    session = botocore.session.Session(session_vars=variables)
    return SessionPair(session, boto3.Session(botocore_session=session))


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
    except (OSError, ValueError, RuntimeError) as e:
        raise setting_error(f"s3://{bucket}", e) from e
