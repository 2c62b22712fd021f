"""One job of Sentinel-2 from plan to files: rows, ledger, metadata of the encoder, damaged and remote items."""

import json
import logging
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from kiln.archives.registry import get_archive
from kiln.archives.sentinel2 import assets
from kiln.archives.sentinel2.layout import chip_layout
from kiln.formats import embeddings_file, plan_file
from kiln.formats.fingerprint import fingerprint, shard_name
from kiln.formats.ledger import ledger_name
from kiln.formats.plan_file import ShardPlan
from kiln.io import gdal
from kiln.model import checkpoint
from kiln.model import weights as encoders
from kiln.model.identity import RECIPE
from scripts import embed
from tests.support.embed_jobs import check_help, ledger_closes, read_files, run_failing_job
from tests.support.items import BUCKET, FILES, write_item

MEAN = [1105, 1355, 1552, 1887, 2422, 2630, 2743, 2785, 2388, 1835]  # the design's table, blue to swir22
STD = [1809, 1757, 1888, 1870, 1732, 1697, 1742, 1648, 1470, 1379]
WAVES = [0.493, 0.56, 0.665, 0.704, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19]
NAMES = [f"S2A_29RKH_202002{d:02d}_0_L2A" for d in range(10, 15)]
REAL_ITEM = "sentinel-s2-l2a-cogs/29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A/S2A_29RKH_20200219_0_L2A.json"
BASELINE_04 = {"s2:processing_baseline": "04.00"}


def shard_of(*entries, chip=16, partition="29R-2020-02"):
    items = {e["id"]: e["href"] for e in entries}
    name = shard_name("0.0", tuple(items))
    return ShardPlan("sentinel2", partition, name, tuple(items), chip, 0, 0, BUCKET, {"items": items})


def make_plan(path, *entries, chip=16):
    """Write a plan of one shard of the items and return its path."""
    plan_file.write_plan([shard_of(*entries, chip=chip)], str(path))
    return path


@pytest.fixture
def run(tmp_path, encoder_file):
    """Embed the only shard of a plan; return its rows, and its ledger by item id."""

    def do(items, *more, folder=tmp_path / "shards", weights=encoder_file, root=tmp_path, chip=16):
        entries = (m if isinstance(m, dict) else m.entry for m in items)
        units = make_plan(tmp_path / "plan.gz", *entries, chip=chip)
        embed.main(flags(units, folder, weights, *more, root=root))
        (rows,) = [p for p in folder.glob("*.parquet") if not p.name.endswith(".ledger.parquet")]
        ledger = pq.read_table(ledger_name(str(rows))).to_pylist()
        return pq.read_table(rows).to_pylist(), {e["unit_id"].partition(":")[2]: e for e in ledger}

    return do


def flags(units, folder, weights, *more, root):
    args = ["sentinel2", "--units", units, "--index", 0, "--folder", folder, "--weights", weights, "--threads", 1]
    args += ["--vector-dtype", "float32"]
    return [str(t) for t in (*args, *more, f"--rewrite={BUCKET}={root}")]


# ---------------------------------------------------------------------------------------------------- what a job writes


def class_token(encoder, pixels, when=None, place=None, gsd=10.0):
    """The reference: normalised pixels, gsd, and as trained [sin week, cos week, sin noon, cos noon], then
    [sin lon, cos lon, sin lat, cos lat]; zeros without date or place."""
    x = torch.from_numpy(pixels[None].astype(np.float32))
    x = (x - torch.tensor(MEAN).view(10, 1, 1)) / torch.tensor(STD).view(10, 1, 1)
    week = when.isocalendar().week * 2 * np.pi / 52 if when else 0
    time_ = [np.sin(week), np.cos(week), 0, -1] if when else [0] * 4
    here = [f(np.radians(v)) for v in place for f in (np.sin, np.cos)] if place else [0] * 4
    metadata = {k: torch.tensor([v], dtype=torch.float32) for k, v in (("time", time_), ("latlon", here))}
    return encoder(x, wavelengths=torch.tensor(WAVES), gsd=gsd, **metadata)[0, 0].tolist()


@pytest.fixture(scope="module")
def golden_weights(checkpoint_file, checkpoint_sha256, tmp_path_factory):
    """The encoder of the checkpoint that the reference implementation verified, and its file."""
    path = tmp_path_factory.mktemp("golden") / "golden-float32.safetensors"
    checkpoint.extract_encoder(checkpoint_file, checkpoint_sha256, "clay.ckpt", "float32", path)
    return encoders.load_encoder(checkpoint_file), path


@pytest.mark.parametrize("metadata", ["as_trained", "zeros"])
def test_every_row_is_the_class_token_of_its_pixels_date_and_place(tmp_path, run, golden_weights, metadata):
    encoder, weights = golden_weights
    written = write_item(tmp_path, side=48)
    rows, ledger = run([written], "--batch-size", 4, "--metadata", metadata, weights=weights)
    assert len(rows) == 9
    for row in rows:
        x, y = row["col"] * 16, row["row"] * 16
        with rasterio.open(written.folder / "B04.tif") as file:
            east, north = file.xy(y + 8, x + 8, offset="ul")
            centre = geopandas.GeoSeries.from_xy([east], [north], crs=file.crs).to_crs(4326)[0]
        date_and_place = {"when": datetime(2020, 2, 19, tzinfo=UTC), "place": (centre.x, centre.y)}
        pixels = written.bands[:, y : y + 16, x : x + 16]
        expected = class_token(encoder, pixels, **(date_and_place if metadata == "as_trained" else {}))
        assert row["embeddings"] == pytest.approx(expected, abs=1e-4)
        for other in (
            {},
            date_and_place | {"place": (centre.y, centre.x)},
            date_and_place | {"when": datetime(2020, 6, 1, tzinfo=UTC)},
        ):
            if metadata == "as_trained":  # each of them changes the vector
                assert row["embeddings"] != pytest.approx(class_token(encoder, pixels, **other), abs=1e-3)
    assert ledger[written.entry["id"]]["notes"] == "no_offset"


def test_pixels_are_encoded_without_the_offset(tmp_path, run, encoder):
    written = write_item(tmp_path, side=16, low=1500, properties=BASELINE_04)
    (row,), ledger = run([written], "--metadata", "zeros")
    assert row["embeddings"] == pytest.approx(class_token(encoder, written.bands - 1000), abs=1e-4)
    assert row["offset_applied"]
    assert "offset_subtracted" in ledger[written.entry["id"]]["notes"]


def test_an_actual_gsd_is_the_pixel_size_of_the_scene(tmp_path, run, encoder):
    written = write_item(tmp_path, side=16)
    (row,), _ = run([written], "--metadata", "zeros", "--gsd", "actual")
    assert row["embeddings"] == pytest.approx(class_token(encoder, written.bands, gsd=10.0), abs=1e-4)
    assert row["pixel_size"] == 10


def test_the_ledger_closes_and_counts_nodata_and_cloud_separately(tmp_path, run):
    scl = np.full((32, 32), 5, np.uint8)
    scl[:8], scl[8:16, :16] = 0, 9
    written = [
        write_item(tmp_path, NAMES[0], scl=scl),
        write_item(tmp_path, NAMES[1], scl=np.full((32, 32), 8, np.uint8)),
        write_item(tmp_path, NAMES[2], side=8),
        write_item(tmp_path, NAMES[3]),
    ]
    (written[3].folder / "B06.tif").unlink()
    missing = {"id": NAMES[4], "href": f"{BUCKET}/gone.json"}
    rows, ledger = run([*written, missing])
    assert ledger_closes(ledger, rows)
    names = ("status", "expected", "expected_known", "embedded", "skipped_nodata", "skipped_cloud", "failed")
    estimate = (10_980 // 16) ** 2
    assert {k: tuple(e[n] for n in names) for k, e in ledger.items()} == {
        NAMES[0]: ("embedded", 16, True, 10, 4, 2, 0),
        NAMES[1]: ("empty", 16, True, 0, 0, 16, 0),
        NAMES[2]: ("empty", 0, True, 0, 0, 0, 0),
        NAMES[3]: ("failed", estimate, False, 0, 0, 0, estimate),
        NAMES[4]: ("failed", estimate, False, 0, 0, 0, estimate),
    }
    assert ledger[NAMES[1]]["reason"] == "more cloud than max_cloud"
    assert "rededge2 is missing" in ledger[NAMES[3]]["reason"]
    assert ledger[NAMES[4]]["reason"] == f"{tmp_path}/gone.json: does not exist"


@pytest.mark.parametrize(("limit", "embedded", "skipped"), [(0.5, 12, 4), (0.6, 12, 4), (0.63, 16, 0)])
def test_the_limit_on_cloud_is_a_flag_and_part_of_the_fingerprint(
    tmp_path, run, encoder_file, limit, embedded, skipped
):
    scl = np.full((32, 32), 5, np.uint8)
    scl[:5] = 3  # five of eight rows of a chip: 0.625
    written = write_item(tmp_path, scl=scl)
    _, ledger = run([written], "--max-cloud", limit, "--max-nodata", 0.1)
    e = ledger[written.entry["id"]]
    assert (e["embedded"], e["skipped_cloud"]) == (embedded, skipped)
    about = about_of(tmp_path / "shards")
    limits = {"max_nodata": 0.1, "max_cloud": limit}
    assert about["limits"] == limits
    settings = {"weights": encoders.read_metadata(encoder_file)["sha256"], "precision": "float32", "dtype": "float32"}
    settings |= {"metadata": "as_trained", "gsd": "as_trained", "lattice": chip_layout(16)}
    archive = get_archive("sentinel2")
    recipes = {"clay": RECIPE, "sentinel2": archive.recipe}
    assert about["fingerprint"] == fingerprint(
        "sentinel2", sensor=archive.sensor, recipes=recipes, **settings, **limits
    )


def about_of(folder):
    (path,) = (p for p in folder.iterdir() if "ledger" not in p.name)
    return embeddings_file.read_metadata(path)


def test_the_metadata_of_the_file_describes_its_vectors(tmp_path, run):
    written = write_item(tmp_path, side=16)
    rows, _ = run([written], "--offset-max-dark-fraction", "0.01")
    about = about_of(tmp_path / "shards")
    bands = list(FILES)
    assert about["normalisation"] == {"bands": bands, "mean": MEAN, "std": STD}
    assert (about["wavelengths"], about["gsd"], about["metadata"]) == (WAVES, 10.0, "as_trained")
    assert about["lattice"] == {"chip_size": 16, "lattice": "scene", "offset_max_dark_fraction": 0.01}
    sizes = {str(p): {"size": p.stat().st_size} for p in written.folder.glob("*.tif")}
    assert about["sources"] == sizes
    assert set(rows[0]["sources"]) == set(sizes) - {str(written.folder / "SCL.tif")}


def test_the_datasets_own_columns_have_the_types_of_the_contract(tmp_path, run):
    written = [write_item(tmp_path, NAMES[0], side=16), write_item(tmp_path, NAMES[1], side=16, style="v0")]
    rows, _ = run(written)
    (path,) = (p for p in (tmp_path / "shards").iterdir() if "ledger" not in p.name)
    read = pq.read_schema(path)
    for name in ("platform", "mgrs_tile", "processing_baseline"):
        assert read.field(name).type == pa.dictionary(pa.int32(), pa.string())
    assert [read.field(n).type for n in ("offset_applied", "sun_elevation")] == [pa.bool_(), pa.float32()]
    assert [r["sun_elevation"] for r in rows] == [48.25, None]
    assert {(r["platform"], r["mgrs_tile"], r["processing_baseline"]) for r in rows} == {
        ("sentinel-2a", "29RKH", "02.14")
    }
    frame = geopandas.read_parquet(path)
    assert frame.crs.to_epsg() == 4326
    assert frame.geometry.is_valid.all()


def test_two_runs_give_byte_equal_files(tmp_path, run):
    written = [write_item(tmp_path, n, seed=i, blockysize=16) for i, n in enumerate(NAMES[:3])]
    run(written, folder=tmp_path / "a")
    run(written, "--read-threads", 1, "--read-ahead-mb", 0, folder=tmp_path / "b")
    assert len(read_files(tmp_path / "a")) == 2
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


def test_the_address_of_an_item_does_not_change_the_file(tmp_path, run):
    written = write_item(tmp_path)
    shutil.copy(written.folder / f"{written.entry['id']}.json", tmp_path / "elsewhere.json")
    run([written], folder=tmp_path / "a")
    run([written.entry | {"href": str(tmp_path / "elsewhere.json")}], folder=tmp_path / "b")
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


def test_an_interrupted_job_keeps_the_checkpoints_of_its_finished_items(
    tmp_path, run, encoder_file, capsys, serve, monkeypatch
):
    monkeypatch.setattr(assets, "REQUEST_THREADS", 3)
    no_cache = {"GDAL_HTTP_MAX_RETRY": "0", "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127"}
    monkeypatch.setattr(gdal, "OPTIONS", gdal.OPTIONS | no_cache)
    written = [write_item(tmp_path / "near", n, seed=i) for i, n in enumerate(NAMES[:3])]
    server = serve(
        {f"/{p.relative_to(tmp_path / 'near')}": p.read_bytes() for p in tmp_path.rglob("*.*") if p.is_file()}
    )
    run(written, "--batch-size", 1, root=server.url, folder=tmp_path / "whole")
    units = make_plan(tmp_path / "plan.gz", *(m.entry for m in written))
    more = ["--checkpoints", tmp_path / "checkpoints", "--read-threads", 1, "--read-ahead-mb", 0, "--batch-size", 1]
    argv = flags(units, tmp_path / "shards", encoder_file, *more, root=server.url)
    read = assets.BandFiles.read

    def breaks(self, band, **how):
        if self.item_id == NAMES[2]:
            server.status = 503
        return read(self, band, **how)

    monkeypatch.setattr(assets.BandFiles, "read", breaks)
    assert run_failing_job(capsys, argv)[0] == 1
    assert read_files(tmp_path / "shards") == {}
    monkeypatch.setattr(assets.BandFiles, "read", read)
    server.status = 0
    items_read = []
    monkeypatch.setattr(assets.BandFiles, "read", lambda s, b, **k: items_read.append(s.item_id) or read(s, b, **k))
    embed.main(argv)
    assert NAMES[0] not in items_read
    assert NAMES[2] in items_read
    assert read_files(tmp_path / "shards") == read_files(tmp_path / "whole")


# ----------------------------------------------------------------------------------- errors and the choice of the shard


def test_a_refusing_server_ends_the_job_before_the_weights_load(tmp_path, capsys, serve, encoder_file, monkeypatch):
    written = write_item(tmp_path)
    server = serve({}, status=403)
    monkeypatch.setattr(assets, "REQUEST_THREADS", 3)
    monkeypatch.setattr(encoders, "load_encoder", lambda *a, **k: pytest.fail("weights were loaded"))
    units = make_plan(tmp_path / "plan.gz", written.entry)
    code, stderr = run_failing_job(capsys, flags(units, tmp_path / "shards", encoder_file, root=server.url))
    assert (code, len(stderr.splitlines())) == (2, 1)
    assert "403" in stderr
    assert read_files(tmp_path / "shards") == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-cloud", "1.5"], "--max-cloud: expected 1 or less, got '1.5'"),
        (["--offset-max-dark-fraction", "-1"], "--offset-max-dark-fraction: expected 0 or more, got '-1'"),
        (["--rewrite", "nothing"], "--rewrite: expected text that matches ^[^=]+=.+$"),
        (["--rewrite", "=x"], "--rewrite: expected text that matches ^[^=]+=.+$"),
    ],
)
def test_wrong_flags_are_errors_that_name_them(tmp_path, capsys, encoder_file, more, message):
    units = make_plan(tmp_path / "plan.gz", {"id": "a", "href": "b"})
    argv = [a for a in flags(units, tmp_path / "shards", encoder_file, root=tmp_path) if not a.startswith("--rewrite")]
    code, stderr = run_failing_job(capsys, [*argv, *more])
    assert code == 2
    assert message in stderr


def test_a_plan_of_another_archive_is_refused(tmp_path, capsys):
    plan_file.write_plan([replace(shard_of({"id": "a", "href": "b"}), dataset="naip")], str(tmp_path / "plan.gz"))
    code, stderr = run_failing_job(
        capsys, flags(tmp_path / "plan.gz", tmp_path / "shards", "not-even-there", root=tmp_path)
    )
    assert (code, "expected a plan of sentinel2, got one of naip" in stderr) == (2, True)


def test_an_index_past_the_end_is_logged_and_no_error(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    units = make_plan(tmp_path / "plan.gz", {"id": "a", "href": "b"})
    embed.main(flags(units, tmp_path / "shards", "not-even-there", "--index", 1, root=tmp_path))
    assert read_files(tmp_path / "shards") == {}
    assert "past the end" in caplog.text


def test_help_shows_every_flag_and_does_not_import_torch():
    check_help("sentinel2", ("--index", "--max-cloud", "--metadata", "--rewrite", "--offset-max-dark-fraction"))


# ------------------------------------------------------------------------------------------------------- the real scene


def test_a_real_scene_is_embedded_at_the_place_of_its_files(shared, run, encoder):
    if not shared:
        pytest.skip("no real scene here")
    root = shared / "archive" / "sentinel-cogs"
    entry = {"id": Path(REAL_ITEM).stem, "href": f"{BUCKET}/{REAL_ITEM}"}
    rows, ledger = run([entry], root=root, chip=256)
    (e,) = ledger.values()
    assert (e["status"], e["expected"], e["embedded"], e["notes"]) == ("embedded", 16, 16, "no_offset")
    folder = root / Path(REAL_ITEM).parent
    assert json.loads((root / REAL_ITEM).read_text())["assets"]["red"]["proj:shape"] == [
        10_980,
        10_980,
    ]  # not the shape of the files
    frame = geopandas.GeoDataFrame(rows, geometry=geopandas.GeoSeries.from_wkb([r["geometry"] for r in rows]), crs=4326)
    for row, footprint in zip(rows, frame.to_crs(32629).geometry, strict=True):
        with rasterio.open(folder / "B04.tif") as file:
            window = rasterio.windows.from_bounds(*footprint.bounds, transform=file.transform)
            assert window.flatten() == pytest.approx((row["col"] * 256, row["row"] * 256, 256, 256), abs=0.01)
        chip = []
        for name in FILES.values():
            with rasterio.open(folder / f"{name}.tif") as file:
                here = rasterio.windows.from_bounds(*footprint.bounds, transform=file.transform)
                here = here.round_offsets(pixel_precision=3).round_lengths(pixel_precision=3)
                pixels = file.read(1, window=here)
            chip.append(np.kron(pixels, np.ones((256 // len(pixels),) * 2, np.uint16)))
        centre = geopandas.GeoSeries([footprint.centroid], crs=32629).to_crs(4326)[0]
        when = datetime(2020, 2, 19, tzinfo=UTC)
        right = class_token(encoder, np.stack(chip), when=when, place=(centre.x, centre.y))
        assert row["embeddings"] == pytest.approx(right, abs=1e-3)
        assert row["datetime"] == datetime(2020, 2, 19, 11, 34, 25, 405_000, tzinfo=UTC)
