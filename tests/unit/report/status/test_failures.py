"""Whether a retry may repair a failure, by its reason and by its source as it is now."""

import os
import socket
from types import SimpleNamespace

import pytest

from kiln.io import storage
from kiln.report.status import failures
from kiln.report.status.failures import outlooks
from kiln.report.status.folders import Failure

WRITTEN = 2_000_000_000 * 10**9  # when the ledger was written
S = 10**9
UNIT = "naip:nd:2019:m_1"


def write_source(name="tiles/a.tif", *, age_s):
    """Write a source that changed so many seconds before the ledger was written."""
    storage.write_bytes(name, b"pixels")
    os.utime(name, ns=(0, WRITTEN - age_s * S))
    return name


def outlook(reason, source="", etag="", *, unit=UNIT, written=WRITTEN):
    failure = Failure(unit, reason, source, etag)
    return outlooks([(failure, written)])[failure]


def closed_server():
    """Return the address of a server that refuses connections."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


# ------------------------------------------------------------------------------------------------- without a look


def test_no_failures_have_no_outlooks():
    assert outlooks([]) == {}


@pytest.mark.parametrize("reason", ["the ledger is gone", "results/a.ledger.parquet: not a ledger (x)."])
def test_a_damaged_ledger_is_worth_a_retry(looked_at, reason):
    assert outlook(reason, unit="") == "retry"
    assert looked_at == []


def test_a_vector_that_is_not_finite_recurs(here, looked_at):
    source = write_source(age_s=-60)
    assert outlook("vector not finite in float16", source) == "recurs"
    assert looked_at == [], "the model gives the same again"


# ------------------------------------------------------------------------------------------------- sources on a disk


@pytest.mark.parametrize(("age_s", "expected"), [(60, "recurs"), (0, "recurs"), (-60, "retry")])
@pytest.mark.parametrize("source", ["tiles", "tiles/a.tif"], ids=["of a folder", "of a file"])
def test_a_source_on_a_disk_is_compared_by_its_time(here, age_s, expected, source):
    write_source(age_s=age_s)
    assert outlook("tiles/a.tif: unreadable (bad block)", source) == expected


def test_without_a_file_in_the_reason_the_unit_s_source_counts(here):
    assert outlook("dark", write_source(age_s=60)) == "recurs"
    assert outlook("dark: 3/4 of it, at least", write_source(age_s=-60)) == "retry"


def test_the_file_of_the_reason_counts_before_the_unit_s_source(here):
    write_source("tiles/b.tif", age_s=-60)
    assert outlook("tiles/a.tif: unreadable", write_source(age_s=60)) == "recurs"
    assert outlook("tiles/b.tif: unreadable", "tiles/a.tif") == "retry"
    assert outlook("tiles/b.tif, page 3: unreadable", "tiles/a.tif") == "retry"


def test_the_time_of_a_ledger_on_a_store_is_unknown(here):
    assert outlook("tiles/a.tif: unreadable", write_source(age_s=60), written=0) == "unknown"


def test_a_source_that_is_gone_after_another_failure_is_unknown(here):
    assert outlook("tiles/a.tif: unreadable", "tiles/a.tif") == "unknown"


@pytest.mark.parametrize(
    "what", ["does not exist", "was removed while it was read", "removed since the archive was listed. Delete the plan"]
)
def test_a_missing_source_recurs_until_it_is_there(here, what):
    reason = f"tiles/a.tif: {what}"
    assert outlook(reason, "tiles") == "recurs"
    write_source(age_s=60)
    assert outlook(reason, "tiles") == "retry", "whatever its time"


def test_a_unit_with_a_missing_file_among_others_recurs_until_that_is_there(here):
    """An item has a file for each band, and its failure names the band first."""
    red = write_source("item/B04.tif", age_s=60)
    reason = "nir is missing: item/B08.tif: does not exist"
    assert outlook(reason, red) == "recurs"
    write_source("item/B08.tif", age_s=60)
    assert outlook(reason, red) == "retry"


def test_an_address_of_another_scheme_is_unknown():
    assert outlook("ftp://host/a.tif: unreadable", "ftp://host/a.tif") == "unknown"


# ------------------------------------------------------------------------------------------------- sources on a store


@pytest.mark.parametrize(
    ("etag", "expected"),
    [("one", "recurs"), ("two", "retry"), ("", "unknown"), ("0123456789abcdef", "unknown")],
    ids=["same", "other", "none", "of several files"],
)
def test_a_source_on_a_server_is_compared_by_its_etag(serve, etag, expected):
    uri = f"{serve({'/nd/m_1.tif': b'pixels'}).url}/nd/m_1.tif"
    assert outlook(f"{uri}: not a readable GeoTIFF (x)", uri, etag) == expected
    assert outlook("dark", uri, etag) == expected


def test_the_etag_of_another_file_is_not_compared(serve):
    url = serve({"/a.tif": b"pixels", "/b.tif": b"pixels"}).url
    assert outlook(f"{url}/a.tif: unreadable", f"{url}/b.tif", "two") == "unknown"


def test_a_server_without_etags_is_unknown(serve):
    uri = f"{serve({'/a.tif': b'pixels'}, etag='').url}/a.tif"
    assert outlook(f"{uri}: unreadable", uri, "one") == "unknown"


def test_a_missing_file_of_a_server_recurs_until_it_is_there(serve):
    server = serve({"/item/B04.tif": b"pixels"})
    red, reason = f"{server.url}/item/B04.tif", f"nir is missing: {server.url}/item/B08.tif: does not exist"
    assert outlook(reason, red, "one") == "recurs"
    server.files["/item/B08.tif"] = b"pixels"
    assert outlook(reason, red, "one") == "retry"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("what", ["", "nir cannot be read: "], ids=["of the file", "of a band"])
def test_denied_access_recurs_until_the_file_can_be_read(serve, status, what):
    server = serve({"/a.tif": b"pixels"}, status=status)
    uri = f"{server.url}/a.tif"
    reason = f"{what}{uri}: the server answers {status} No. Check your access."
    assert outlook(reason, uri, "one") == "recurs"
    assert outlook(f"{uri}: unreadable", uri, "one") == "unknown", "readable then, denied now"
    server.status = 0
    assert outlook(reason, uri, "one") == "retry"


def test_sources_on_object_storage_are_compared_by_their_etag(bucket):
    uri = f"{bucket}/a.tif"
    assert outlook(f"{uri}: does not exist", uri) == "recurs"
    storage.write_bytes(uri, b"pixels")
    etag = storage.stat(uri).etag
    assert outlook(f"{uri}: does not exist", uri) == "retry"
    assert outlook(f"{uri}: access denied (AccessDenied). Check the credentials.", uri) == "retry"
    assert outlook(f"{uri}: unreadable", uri, etag) == "recurs"
    storage.write_bytes(uri, b"other pixels")
    assert outlook(f"{uri}: unreadable", uri, etag) == "retry"


# ------------------------------------------------------------------------------------------------- many failures


def failures_at(url, count):
    return [(Failure(f"u{n}", f"{url}/{n}.tif: unreadable", f"{url}/{n}.tif", "one"), WRITTEN) for n in range(count)]


def test_a_server_that_cannot_be_reached_is_asked_once(serve, looked_at):
    closed, open_ = closed_server(), serve({f"/{n}.tif": b"pixels" for n in range(5)}).url
    entries = [*failures_at(closed, 5), *failures_at(open_, 5)]
    found = outlooks(entries)
    assert list(found.values()) == ["unknown"] * 5 + ["recurs"] * 5
    assert [uri for uri in looked_at if uri.startswith(closed)] == [f"{closed}/0.tif"]
    assert len(looked_at) == 6


def test_failures_that_need_no_look_do_not_stand_for_their_server(looked_at):
    closed = closed_server()
    entries = failures_at(closed, 5)
    not_finite = Failure("n", "vector not finite in float16", f"{closed}/n.tif", "one")
    found = outlooks([(not_finite, WRITTEN), *entries])
    assert list(found.values()) == ["recurs"] + ["unknown"] * 5
    assert looked_at == [f"{closed}/0.tif"]


def test_an_overloaded_server_is_asked_once(serve):
    server = serve({f"/{n}.tif": b"pixels" for n in range(5)}, status=503)
    assert set(outlooks(failures_at(server.url, 5)).values()) == {"unknown"}
    assert {path for _, path, _ in server.requests} == {"/0.tif"}


def test_a_server_that_fails_later_leaves_the_others_unknown(serve, monkeypatch):
    server = serve({f"/{n}.tif": b"pixels" for n in range(3)})
    stat = storage.stat

    def failing(uri):
        server.status = 503 if uri.endswith("/1.tif") else 0
        return stat(uri)

    monkeypatch.setattr(storage, "stat", failing)
    monkeypatch.setattr(failures, "MAX_REQUESTS", 1)
    assert list(outlooks(failures_at(server.url, 3)).values()) == ["recurs", "unknown", "recurs"]


def test_only_so_many_sources_are_looked_at(here, looked_at, monkeypatch):
    monkeypatch.setattr(failures, "MAX_CHECKED", 3)
    reasons = [f"{write_source(f'tiles/{n}.tif', age_s=60)}: unreadable" for n in range(5)]
    sources = [Failure(UNIT, reason, "tiles") for reason in reasons]
    found = outlooks([(failure, WRITTEN) for failure in sources])
    assert [found[failure] for failure in sources] == ["recurs"] * 3 + ["unchecked"] * 2
    assert sorted(looked_at) == [f"tiles/{n}.tif" for n in range(3)]


def test_an_outlook_is_kept_for_some_time(here, looked_at, monkeypatch):
    clock = [50.0]
    monkeypatch.setattr(failures, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    failure = Failure(UNIT, "tiles/kept.tif: unreadable", "tiles")
    write_source("tiles/kept.tif", age_s=60)

    def look(keep_s):
        return outlooks([(failure, WRITTEN)], keep_s)[failure]

    assert [look(100), look(100)] == ["recurs", "recurs"]
    assert len(looked_at) == 1
    write_source("tiles/kept.tif", age_s=-60)
    assert look(100) == "recurs", "as it was found before"
    assert look(0) == "retry", "without a time it is looked at"
    clock[0] = 150.0
    assert look(100) == "retry"
    assert len(looked_at) == 3


def test_a_server_that_could_not_be_reached_is_asked_again(looked_at):
    """What is kept is an outlook, and there was none."""
    closed = closed_server()
    for _ in range(2):
        assert set(outlooks(failures_at(closed, 3), 100.0).values()) == {"unknown"}
    assert looked_at == [f"{closed}/0.tif"] * 2


def test_damaged_ledgers_do_not_use_up_the_looks(here, monkeypatch):
    monkeypatch.setattr(failures, "MAX_CHECKED", 1)
    ledgers = [Failure("", f"{n}.ledger.parquet: not a ledger (x).") for n in range(3)]
    source = Failure(UNIT, "tiles/a.tif: unreadable", "tiles")
    write_source(age_s=60)
    found = outlooks([(failure, WRITTEN) for failure in (*ledgers[:2], source, ledgers[2])])
    assert list(found.values()) == ["retry", "retry", "recurs", "retry"]
