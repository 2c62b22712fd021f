"""One answer to where S3 is: botocore's own, for libraries that do not ask it (GDAL, LanceDB).

The answer comes from the client that Kiln's own requests use, so it is what botocore makes of variables, of the profile
and of its services section.
"""

import threading
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from kiln.io.aws.session import ca_bundle, is_aws, is_unsigned, region, requester_pays
from kiln.io.buckets import known_bucket

PROBED = "before-call.s3.HeadBucket"
DEFAULT_REGION = "us-east-1"  # for libraries that need one, where none is set


@dataclass(frozen=True)
class S3Settings:
    """Where a bucket is, and how requests to it are made.

    Attributes:
        endpoint: URL of the store, without the bucket.
        virtual_hosts: Whether the bucket is a part of the host's name, else of the path.
        region: Region that requests are signed for; empty if none is set.
        ca_bundle: File of certificate authorities; empty for the library's own.
        proxy: URL of the proxy; empty for none.
        unsigned: Whether requests have no credentials.
        requester_pays: Whether the requester pays.
    """

    endpoint: str
    virtual_hosts: bool
    region: str
    ca_bundle: str
    proxy: str
    unsigned: bool
    requester_pays: bool


_SETTINGS: "weakref.WeakKeyDictionary[Any, S3Settings]" = weakref.WeakKeyDictionary()


def settings_of(client: Any, bucket: str) -> S3Settings:
    """Return the settings that a client has for a bucket. No request is made.

    Args:
        client: The bucket's client.
        bucket: Name of the bucket.
    """
    if client not in _SETTINGS:
        _SETTINGS[client] = _read(client, bucket)
    return _SETTINGS[client]


def _read(client: Any, bucket: str) -> S3Settings:
    from botocore.utils import get_environ_proxies

    parts = urlsplit(_request_url(client, bucket))
    host, prefix = parts.netloc, f"{bucket}."
    virtual_hosts = host.startswith(prefix)
    path = parts.path if virtual_hosts else parts.path.rpartition(f"/{bucket}")[0]
    endpoint = f"{parts.scheme}://{host.removeprefix(prefix) if virtual_hosts else host}{path.rstrip('/')}"
    known = known_bucket(bucket)
    return S3Settings(
        endpoint=endpoint,
        virtual_hosts=virtual_hosts,
        region=known.region if known and is_aws(endpoint) else region(bucket),
        ca_bundle=ca_bundle(bucket),
        proxy=get_environ_proxies(parts.geturl()).get(parts.scheme, ""),
        unsigned=is_unsigned(bucket),
        requester_pays=requester_pays(bucket),
    )


def _request_url(client: Any, bucket: str) -> str:
    """Return the URL of a request for the bucket itself, as botocore makes it. The request is not sent."""
    thread, urls = threading.get_ident(), []

    def answer(params: dict[str, Any], **_: Any) -> tuple[Any, dict[str, Any]] | None:
        if threading.get_ident() != thread:
            return None
        urls.append(params["url"])
        return SimpleNamespace(status_code=200), {}

    client.meta.events.register(PROBED, answer)
    try:
        client.head_bucket(Bucket=bucket)
    finally:
        client.meta.events.unregister(PROBED, answer)
    return str(urls[0])
