"""Names of files: local paths, `s3://` and `http(s)://`."""

from pathlib import Path


def is_s3(uri: str | Path) -> bool:
    """Return whether `uri` names an S3 object or prefix."""
    return str(uri).startswith("s3://")


def is_http(uri: str | Path) -> bool:
    """Return whether `uri` is read over http or https."""
    return str(uri).startswith(("http://", "https://"))


def is_remote(uri: str | Path) -> bool:
    """Return whether `uri` is anywhere but on this machine's disks."""
    return is_s3(uri) or is_http(uri)


def join(root: str | Path, *parts: str) -> str:
    """Return `root/part/part`, for paths and URIs alike."""
    return "/".join([str(root).rstrip("/"), *parts]) if str(root) else "/".join(parts)


def split_s3(uri: str) -> tuple[str, str]:
    """Return bucket and key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
