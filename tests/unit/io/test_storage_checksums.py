"""Checksums that a store holds: what boto3 compares, and what a mismatch is called."""

import base64
import hashlib

import pytest

from kiln.errors import TransientError
from kiln.io import storage
from kiln.io.storage import store

WRITTEN, ROTTEN = b"as it was written" * 1000, b"as it lies there " * 1000


@pytest.fixture
def rotten(bucket, monkeypatch):
    """Return an object whose bytes do not fit the checksum that the store holds."""
    monkeypatch.setattr(store, "CUT_PAUSES_S", (0.0, 0.0))
    name = bucket.removeprefix("s3://")
    checksum = base64.b64encode(hashlib.sha256(WRITTEN).digest()).decode()
    client = storage.s3_client(name)
    client.put_object(Bucket=name, Key="a", Body=ROTTEN, ChecksumAlgorithm="SHA256", ChecksumSHA256=checksum)
    return f"{bucket}/a"


def test_an_object_that_does_not_fit_its_checksum_is_not_taken(rotten, tmp_path):
    with pytest.raises(TransientError, match=rf"^{rotten}: .*checksum"):
        storage.read_bytes(rotten)
    with pytest.raises(TransientError, match=rf"^{rotten}: .*checksum"):
        storage.fetch(rotten, tmp_path / "a")
    with pytest.raises(TransientError), storage.local_copy(rotten):
        pass


def test_what_kiln_writes_has_a_checksum(bucket):
    storage.write_bytes(f"{bucket}/b", WRITTEN)
    name = bucket.removeprefix("s3://")
    head = storage.s3_client(name).head_object(Bucket=name, Key="b", ChecksumMode="ENABLED")
    assert any(key.startswith("Checksum") and key != "ChecksumType" for key in head)
    assert storage.read_bytes(f"{bucket}/b") == WRITTEN
