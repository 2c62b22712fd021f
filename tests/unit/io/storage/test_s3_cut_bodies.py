"""A body of S3 that breaks off is read again, and is never a traceback or a short file."""

import pytest

from kiln.errors import TransientError
from kiln.io import storage
from kiln.io.storage import store
from tests.support.downloads import DATA

URI = "s3://b/a.bin"
TRIES = 1 + len(store.CUT_PAUSES_S)


def fetched(path) -> bytes:
    storage.fetch(URI, path / "a.bin")
    return (path / "a.bin").read_bytes()


READS = {
    "whole": lambda path: storage.read_bytes(URI),
    "range": lambda path: storage.store_of(URI).read_range(URI, 0, len(DATA) - 1, "one")[0],
    "fetch": fetched,
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("cuts", range(1, TRIES + 1))
def test_a_cut_body_is_read_again(aws, serve, tmp_path, read, cuts):
    server = serve({"/b/a.bin": DATA})
    aws(server.url)
    server.cuts = cuts
    if cuts < TRIES:
        assert READS[read](tmp_path) == DATA
        return
    with pytest.raises(TransientError, match=r"s3://b/a\.bin: the connection broke or failed"):
        READS[read](tmp_path)
