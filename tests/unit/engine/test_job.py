"""A job: its options, fingerprint and metadata, its files, refusals, and checkpoints."""

import json
import logging
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest

from kiln.engine import job
from kiln.engine.job import EmbedOptions, embed_shard
from kiln.engine.metadata import given_gsd
from kiln.errors import ConfigError, StorageError, TooManyFailuresError, WeightsError
from kiln.formats.fingerprint import fingerprint
from kiln.formats.ledger import write_ledger
from kiln.formats.records import Dropped, Unit
from kiln.io import storage
from kiln.model import weights as encoders
from kiln.model.embedder import Embedder
from kiln.model.identity import RECIPE
from tests.support.chips import PLAIN, ListSource, make_chip, make_info

EXACT = EmbedOptions(vector_dtype="float32", threads=1)


class VersionedSource(ListSource):
    """A source whose units can become checkpoints."""

    def units(self):
        return [Unit(u, n, f"s3://b/{u}", f"etag-{u}", True, "1") for u, n in self.expected.items()]


def make_source(units="ab", info=None, kind=VersionedSource):
    events = []
    for n, unit in enumerate(units):
        for chip in range(3):
            rng = np.random.default_rng(10 * n + chip)
            pixels = rng.normal(size=(2, 16, 16)).astype(np.float32)
            events.append(make_chip(chip, unit, pixels=pixels))
        events.append(Dropped(unit, "nodata", 1, "more nodata than max_nodata"))
    return kind(events, dict.fromkeys(units, 4), info or make_info(lattice={"chip_size": 16}))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else {}


def metadata_of(path):
    return json.loads(pq.read_schema(path).metadata[b"kiln"])


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vector_dtype", "float64"),
        ("embedding", "sum"),
        ("max_failed_fraction", 1.5),
        ("max_failed_fraction", float("nan")),
        ("batch_size", 0),
        ("threads", -1),
        ("read_threads", 0),
        ("read_ahead_mb", -1),
        ("device", "tpu"),
        ("device", "cuda:one"),
    ],
)
def test_an_option_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(ConfigError, match=f"^{name}: expected .*, got .*{value}.*Correct it") as e:
        EmbedOptions(**{name: value})
    assert e.value


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:3"])
def test_devices_are_options(device):
    assert EmbedOptions(device=device).device == device


# --------------------------------------------------------------------------------------------- files and their metadata


def test_a_shard_is_a_file_a_ledger_and_a_result_that_names_them(tmp_path, encoder_file):
    output = str(tmp_path / "shards" / "s.parquet")
    result = embed_shard(make_source(), weights=str(encoder_file), output=output)
    assert result.output == output
    assert (result.ledger, result.patches) == (str(tmp_path / "shards" / "s.ledger.parquet"), None)
    assert (result.rows, result.units) == (6, 2)
    assert set(files(tmp_path / "shards")) == {"s.parquet", "s.ledger.parquet"}
    rows = pq.read_table(output)
    assert rows["chip_id"].to_pylist() == [f"{u}:{n}" for u in "ab" for n in range(3)]
    assert rows.schema.field("embeddings").type.value_type == "float16"
    assert [e["skipped_nodata"] for e in pq.read_table(result.ledger).to_pylist()] == [1, 1]
    assert metadata_of(output)["fingerprint"] == result.fingerprint


def test_patches_are_next_to_the_ledger_if_the_file_is_elsewhere(tmp_path, encoder_file):
    ledger = str(tmp_path / "ledgers" / "s.ledger.parquet")
    options = EmbedOptions(patches=True, threads=1)
    result = embed_shard(
        make_source(), weights=encoder_file, output=str(tmp_path / "any" / "o"), ledger=ledger, options=options
    )
    assert result.patches == str(tmp_path / "ledgers" / "s.patches.parquet")
    assert set(files(tmp_path / "ledgers")) == {"s.ledger.parquet", "s.patches.parquet"}
    assert set(files(tmp_path / "any")) == {"o"}
    patches = pq.read_table(result.patches)
    assert patches["chip_id"].equals(pq.read_table(result.output)["chip_id"])
    assert metadata_of(result.patches)["patches"] == {"shape": [2, 2, 32], "vector_dtype": "float16"}


def test_the_metadata_describes_source_weights_and_options(tmp_path, encoder_file):
    info = make_info(lattice={"chip_size": 16, "edge": "drop"}, max_cloud=0.5, metadata="as_published")
    result = embed_shard(
        make_source(info=info), weights=encoder_file, output=str(tmp_path / "s.parquet"), options=EXACT
    )
    header = encoders.read_metadata(encoder_file)
    metadata = metadata_of(result.output)
    assert set(metadata.pop("software")) == {"kiln", "python", "torch", "numpy", "pyarrow", "rasterio", "gdal"}
    assert metadata == {
        "dataset": "plain",
        "partition": "2021",
        "fingerprint": result.fingerprint,
        "recipes": {"clay": RECIPE, "plain": 1},
        "model": "Clay v1.5",
        "weights_sha256": header["sha256"],
        "checkpoint": "untrained",
        "untrained": True,
        "embedding": "class",
        "dimensions": 32,
        "precision": "float32",
        "vector_dtype": "float32",
        "normalisation": {"bands": ["a", "b"], "mean": [0.0, 0.0], "std": [1.0, 1.0]},
        "wavelengths": [0.5, 0.6],
        "gsd": 10.0,
        "metadata": "as_published",
        "chip_size": 16,
        "lattice": {"chip_size": 16, "edge": "drop"},
        "limits": {"max_nodata": 0.05, "max_cloud": 0.5},
        "sources": {},
    }
    assert result.fingerprint == fingerprint(
        "plain",
        sensor=PLAIN,
        recipes=metadata["recipes"],
        weights=header["sha256"],
        precision="float32",
        dtype="float32",
        metadata="as_published",
        gsd="as_trained",
        max_nodata=0.05,
        max_cloud=0.5,
        lattice={"chip_size": 16, "edge": "drop"},
    )


@pytest.mark.parametrize(
    ("gsd", "native_gsd", "given"),
    [("as_trained", 0.6, 10.0), ("as_trained", None, 10.0), ("actual", 0.6, 0.6), ("actual", None, None)],
)
def test_the_model_is_given_the_pixel_size_of_its_training_or_of_the_chips(gsd, native_gsd, given):
    assert given_gsd(make_info(gsd=gsd, native_gsd=native_gsd)) == given


def test_chips_are_given_their_own_pixel_size_where_the_source_has_none(tmp_path, encoder_file):
    vectors = []
    for gsd in ("as_trained", "actual"):
        info = make_info(lattice={"chip_size": 16}, gsd=gsd)
        result = embed_shard(
            make_source(info=info), weights=encoder_file, output=str(tmp_path / f"{gsd}.parquet"), options=EXACT
        )
        vectors.append(pq.read_table(result.output)["embeddings"].to_pylist())
        assert metadata_of(result.output)["gsd"] == (10.0 if gsd == "as_trained" else "actual")
    assert vectors[0] != vectors[1]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changed", [{"vector_dtype": "float16"}, {"embedding": "mean"}, {"patches": True}], ids=lambda c: next(iter(c))
)
def test_options_that_change_vectors_must_have_the_expected_fingerprint(tmp_path, encoder_file, changed):
    options, output = asdict(EXACT), str(tmp_path / "s" / "s.parquet")
    expected = embed_shard(make_source(), weights=encoder_file, output=output, options=EXACT).fingerprint[:8]
    before = files(tmp_path / "s")
    with pytest.raises(ConfigError, match=f"s.parquet: expected fingerprint {expected}, got "):
        embed_shard(
            make_source(), weights=encoder_file, output=output, options=EmbedOptions(**(options | changed)),
            expect_fingerprint=expected,
        )  # fmt: skip
    assert files(tmp_path / "s") == before
    other = EmbedOptions(**(options | {"batch_size": 2, "read_threads": 1, "read_ahead_mb": 0}))
    embed_shard(make_source(), weights=encoder_file, output=output, options=other, expect_fingerprint=expected)


def test_no_weights_are_loaded_before_the_source_is_checked(tmp_path, encoder_file, monkeypatch):
    class Refused(ListSource):
        def check(self):
            raise ConfigError("the bucket is requester-pays")

    monkeypatch.setattr(encoders, "load_encoder", lambda *a, **k: pytest.fail("weights were loaded"))
    with pytest.raises(ConfigError, match="requester-pays"):
        embed_shard(make_source(kind=Refused), weights=encoder_file, output=str(tmp_path / "s" / "s.parquet"))
    assert files(tmp_path / "s") == {}


def test_weights_that_do_not_exist_leave_a_finished_shard_as_it_is(tmp_path, encoder_file):
    output = str(tmp_path / "s" / "s.parquet")
    embed_shard(make_source(), weights=encoder_file, output=output)
    before = files(tmp_path / "s")
    with pytest.raises(WeightsError, match="nowhere"):
        embed_shard(make_source(), weights=tmp_path / "nowhere", output=output)
    assert files(tmp_path / "s") == before


def test_a_shard_that_fails_leaves_no_file(tmp_path, encoder_file):
    source = make_source()
    source.events[0] = Dropped("a", "failed", 1, "a.tif: unreadable")
    with pytest.raises(TooManyFailuresError, match=r"got 12%.*a\.tif: unreadable"):
        embed_shard(
            source, weights=encoder_file, output=str(tmp_path / "s" / "s.parquet"),
            options=EmbedOptions(max_failed_fraction=0.1, patches=True),
        )  # fmt: skip
    assert files(tmp_path / "s") == {}


def test_the_ledger_is_in_place_before_the_file(tmp_path, encoder_file, monkeypatch):
    output, placed = tmp_path / "s.parquet", []

    def write(path, table):
        placed.append(output.exists())
        write_ledger(path, table)

    monkeypatch.setattr(job, "write_ledger", write)
    embed_shard(make_source(), weights=encoder_file, output=str(output))
    assert placed == [False]
    assert output.exists()


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("patches", [False, True])
def test_a_retry_resumes_from_checkpoints_gives_the_same_bytes_and_deletes_them(
    tmp_path, encoder_file, monkeypatch, patches
):
    options = EmbedOptions(threads=1, batch_size=1, patches=patches, max_failed_fraction=0)
    embed_shard(make_source(), weights=encoder_file, output=str(tmp_path / "plain" / "s.parquet"), options=options)
    job = {
        "weights": encoder_file,
        "output": str(tmp_path / "resumed" / "s.parquet"),
        "options": options,
        "checkpoints": str(tmp_path / "checkpoints"),
    }
    failing = make_source()
    failing.events[-1] = Dropped("b", "failed", 1, "b.tif: unreadable")
    with pytest.raises(TooManyFailuresError):
        embed_shard(failing, **job)
    assert len(files(tmp_path / "checkpoints")) == 1 + patches
    encoded = []
    start = Embedder.start
    monkeypatch.setattr(Embedder, "start", lambda self, chips: encoded.extend(chips) or start(self, chips))
    retried = make_source()
    retried.reads = lambda: list(VersionedSource.reads(retried))[4:]  # those of the second unit
    embed_shard(retried, **job)
    assert [chip.unit_id for chip in encoded] == ["b"] * 3
    assert files(tmp_path / "resumed") == files(tmp_path / "plain")
    assert files(tmp_path / "checkpoints") == {}


def test_checkpoints_that_cannot_be_deleted_are_a_warning(tmp_path, encoder_file, monkeypatch, caplog):
    def refused(uri):
        raise StorageError(f"{uri}: access denied")

    monkeypatch.setattr(storage, "delete", refused)
    output = tmp_path / "s.parquet"
    with caplog.at_level(logging.WARNING):
        embed_shard(make_source(), weights=encoder_file, output=str(output), checkpoints=str(tmp_path / "checkpoints"))
    assert output.exists()
    assert "checkpoints of a complete shard remain" in caplog.text
    assert "access denied" in caplog.text


def test_the_options_import_no_torch(tmp_path):
    code = "import sys; import kiln.engine.job; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
