"""A job of NAIP from plan to files: rows, ledger, damaged scenes, lattices, and kinds of vectors."""

import json
import logging
from dataclasses import asdict

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.keys import parse_key
from kiln.archives.naip.layout import chip_layout
from kiln.archives.naip.source import NaipSource
from kiln.archives.registry import get_archive
from kiln.engine.read_ahead import read_ahead
from kiln.formats import embeddings_file, vectors
from kiln.formats.fingerprint import digest, fingerprint
from kiln.formats.ledger import ledger_name
from kiln.formats.records import Chip
from kiln.io import storage
from kiln.model import weights as encoders
from kiln.model.identity import RECIPE
from scripts import embed
from tests.support import plans
from tests.support.archives import random_pixels, write_tile
from tests.support.embed_jobs import check_help, ledger_closes, read_files, run_failing_job
from tests.support.naip_jobs import ND_KEYS, UNDATED_KEY, flags, make_plan, unit_id
from tests.support.naip_scenes import scene_pixels, write_scene

MEAN, STD = [110.16, 115.41, 98.15, 139.04], [47.23, 39.82, 35.43, 49.86]  # red, green, blue, nir: the design's table
WAVES = [0.65, 0.56, 0.48, 0.842]


# ---------------------------------------------------------------------------------------------------- what a job writes


def class_token(encoder, pixels, week=None, place=None, gsd=1.0):
    """The reference: normalised pixels, gsd, and the encoding of week and place (zeros without them)."""
    x = (torch.from_numpy(pixels[None].astype(np.float32)) - torch.tensor(MEAN).view(4, 1, 1)) / torch.tensor(STD).view(
        4, 1, 1
    )
    time_ = [np.sin(week * 2 * np.pi / 52), np.cos(week * 2 * np.pi / 52), 0, -1] if week else [0] * 4
    here = [f(np.radians(v)) for v in place for f in (np.sin, np.cos)] if place else [0] * 4
    metadata = {k: torch.tensor([v], dtype=torch.float32) for k, v in (("time", time_), ("latlon", here))}
    return encoder(x, wavelengths=torch.tensor(WAVES), gsd=gsd, **metadata)[0, 0].tolist()


@pytest.mark.parametrize(
    ("key", "more", "has_metadata"),
    [(ND_KEYS[0], [], True), (UNDATED_KEY, [], False), (ND_KEYS[0], ["--metadata", "zeros"], False)],
    ids=["dated", "undated", "metadata zeros"],
)
def test_every_row_is_the_class_token_of_pixels_date_and_place(tmp_path, run_naip, encoder, key, more, has_metadata):
    pixels = scene_pixels(40, 56)
    path = write_scene(tmp_path, key, pixels)
    rows, ledger = run_naip(make_plan(tmp_path / "plan.gz", [key], tmp_path)[0], 0, "--batch-size", 4, *more)
    assert len(rows) == 6
    for row in rows:
        x, y = row["col"] * 16, row["row"] * 16
        with rasterio.open(path) as file:
            east, north = file.xy(y + 8, x + 8, offset="ul")
            crs = file.crs
        centre = geopandas.GeoSeries.from_xy([east], [north], crs=crs).to_crs(4326)[0]
        # 2019-09-04 is in ISO week 36
        date_and_place = {"week": 36, "place": (centre.x, centre.y)} if has_metadata else {}
        expected = class_token(encoder, pixels[:, y : y + 16, x : x + 16], **date_and_place)
        assert row["embeddings"] == pytest.approx(expected, abs=1e-4)
        if has_metadata:  # without date and place the vector differs
            assert row["embeddings"] != pytest.approx(class_token(encoder, pixels[:, y : y + 16, x : x + 16]), abs=1e-3)
    assert {row["datetime"] is None for row in rows} == {key == UNDATED_KEY}
    assert ledger[unit_id(key)]["notes"] == ("no date in the name" if key == UNDATED_KEY else "")


def test_the_ledger_closes_and_opened_scenes_replace_their_estimates(tmp_path, run_naip):
    holed = scene_pixels(40, 56, 2)
    holed[:, :20, :20] = 0
    write_scene(tmp_path, ND_KEYS[0], scene_pixels(40, 56, 1))
    write_scene(tmp_path, ND_KEYS[1], holed)
    write_scene(tmp_path, ND_KEYS[2], np.zeros((4, 32, 32), np.uint8))
    write_scene(tmp_path, ND_KEYS[3], scene_pixels(12, 12))
    rows, ledger = run_naip(make_plan(tmp_path / "plan.gz", ND_KEYS[:5], tmp_path)[0])
    assert ledger_closes(ledger, rows)
    names = ("status", "expected", "expected_known", "embedded", "skipped_nodata", "failed")
    estimate = ChipCounts(16).about(parse_key(ND_KEYS[4]))
    assert estimate > 100_000
    assert {k: tuple(ledger[unit_id(k)][n] for n in names) for k in ND_KEYS[:5]} == {
        ND_KEYS[0]: ("embedded", 6, True, 6, 0, 0),
        ND_KEYS[1]: ("embedded", 6, True, 2, 4, 0),
        ND_KEYS[2]: ("empty", 4, True, 0, 4, 0),
        ND_KEYS[3]: ("empty", 0, True, 0, 0, 0),
        ND_KEYS[4]: ("failed", estimate, False, 0, 0, estimate),
    }
    assert ledger[unit_id(ND_KEYS[2])]["reason"] == "more nodata than max_nodata"
    assert list(ledger) == [unit_id(k) for k in ND_KEYS[:5]]


def test_a_scene_smaller_than_a_chip_has_a_reason_in_the_ledger(tmp_path, run_naip):
    write_scene(tmp_path, ND_KEYS[0], scene_pixels(12, 12))
    rows, ledger = run_naip(make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)[0])
    assert rows == []
    assert ledger[unit_id(ND_KEYS[0])]["status"] == "empty"
    assert "smaller than a chip" in ledger[unit_id(ND_KEYS[0])]["reason"]


def test_another_resolution_than_that_of_the_key_is_noted_in_the_ledger(tmp_path, run_naip):
    transform = rasterio.transform.from_origin(5e5, 5.2e6, 5, 5)
    write_scene(tmp_path, ND_KEYS[0], scene_pixels(16, 16), transform=transform)
    rows, ledger = run_naip(make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)[0])
    assert ledger[unit_id(ND_KEYS[0])]["notes"] == "pixels of 5 m, expected 1 m from the key"
    assert [r["pixel_size"] for r in rows] == [5]


def test_aligned_edges_add_chips_at_right_and_bottom_and_change_the_fingerprint(tmp_path, run_naip):
    write_scene(tmp_path, ND_KEYS[0], scene_pixels(40, 56))
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)
    dropped, _ = run_naip(units, folder=tmp_path / "drop")
    flush, ledger = run_naip(units, 0, "--edge", "align", folder=tmp_path / "align")
    assert (len(dropped), len(flush), ledger[unit_id(ND_KEYS[0])]["expected"]) == (6, 12, 12)
    same = {r["chip_id"]: r["embeddings"] for r in flush}
    assert all(same[r["chip_id"]] == pytest.approx(r["embeddings"], abs=1e-5) for r in dropped)
    (a,), (b,) = (list((tmp_path / f).glob("*[0-9a-f].parquet")) for f in ("drop", "align"))
    assert embeddings_file.read_metadata(a)["fingerprint"] != embeddings_file.read_metadata(b)["fingerprint"]


def test_the_metadata_of_the_file_describes_its_vectors(tmp_path, run_naip, encoder_file):
    path = write_scene(tmp_path, ND_KEYS[0], scene_pixels(16, 16))
    run_naip(make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)[0])
    (shard,) = (p for p in (tmp_path / "shards").iterdir() if "ledger" not in p.name)
    about = embeddings_file.read_metadata(shard)
    assert about["weights_sha256"] == encoders.read_metadata(encoder_file)["sha256"]
    assert about["normalisation"] == {"bands": ["red", "green", "blue", "nir"], "mean": MEAN, "std": STD}
    assert (about["wavelengths"], about["gsd"], about["metadata"]) == (WAVES, 1.0, "as_trained")
    assert (about["dataset"], about["partition"], about["chip_size"]) == ("naip", "nd-2019", 16)
    assert about["lattice"] == {"chip_size": 16, "lattice": "scene", "edge": "drop"}
    assert about["sources"] == {str(path): {"size": path.stat().st_size}}


def test_two_runs_give_byte_equal_files(tmp_path, run_naip):
    for n, key in enumerate(ND_KEYS[:3]):
        write_scene(tmp_path, key, scene_pixels(seed=n))
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:4], tmp_path)
    run_naip(units, folder=tmp_path / "a")
    run_naip(units, 0, "--read-threads", 1, "--read-ahead-mb", 0, folder=tmp_path / "b")
    assert len(read_files(tmp_path / "a")) == 2
    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


# ------------------------------------------------------------------------------------------------------- damaged scenes


def test_damaged_scenes_fail_with_a_reason_and_the_others_are_embedded(tmp_path, run_naip):
    good = {ND_KEYS[0]: scene_pixels(seed=1), ND_KEYS[8]: scene_pixels(seed=2)}
    for key, pixels in good.items():
        write_scene(tmp_path, key, pixels)
    reasons = {
        ND_KEYS[1]: "does not exist",
        ND_KEYS[2]: "empty, 0 bytes",
        ND_KEYS[3]: "not a readable GeoTIFF",
        ND_KEYS[4]: "3 bands",
    }
    reasons |= {ND_KEYS[5]: "uint16", ND_KEYS[6]: "expected a CRS", ND_KEYS[7]: "not a readable GeoTIFF"}
    opened = {ND_KEYS[7]}  # opened, so its number of chips is known
    for key in (ND_KEYS[2], ND_KEYS[3]):
        write_scene(tmp_path, key, scene_pixels())
    (tmp_path / ND_KEYS[2]).write_bytes(b"")
    (tmp_path / ND_KEYS[3]).write_bytes(b"<html>Please sign in</html>")
    write_scene(tmp_path, ND_KEYS[4], scene_pixels(bands=3))
    write_scene(tmp_path, ND_KEYS[5], scene_pixels(dtype="uint16"))
    write_scene(tmp_path, ND_KEYS[6], scene_pixels(), crs=None)
    cut = write_scene(tmp_path, ND_KEYS[7], scene_pixels())
    cut.write_bytes(cut.read_bytes()[:-3000])
    rows, ledger = run_naip(make_plan(tmp_path / "plan.gz", ND_KEYS, tmp_path)[0], 0, "--max-failed-fraction", 0.8)
    assert ledger_closes(ledger, rows)
    for key, reason in reasons.items():
        e = ledger[unit_id(key)]
        assert (e["status"], e["embedded"], e["expected_known"]) == ("failed", 0, key in opened)
        assert e["reason"].startswith(f"{tmp_path}/{key}: ")
        assert reason in e["reason"]
    assert {r["item_id"] for r in rows} == {parse_key(k).stem for k in good}
    assert len(rows) == 12


def test_more_failed_scenes_than_allowed_fail_the_shard_with_its_ledger_in_the_log(
    tmp_path, capsys, caplog, encoder_file
):
    write_scene(tmp_path, ND_KEYS[0], scene_pixels())
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:3], tmp_path)
    code, stderr = run_failing_job(capsys, flags(units, 0, tmp_path / "shards", encoder_file))
    assert (code, "got 67%; the first reason" in stderr, "does not exist" in stderr) == (1, True, True)
    assert all(unit_id(k) in caplog.text for k in ND_KEYS[:3])
    assert read_files(tmp_path / "shards") == {}


# ---------------------------------------------------------------------------------------------- the choice of the shard


def test_an_index_past_the_end_is_logged_and_no_error(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    units, lines = make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)
    embed.main(flags(units, len(lines), tmp_path / "shards", "not-even-there"))
    assert read_files(tmp_path / "shards") == {}
    assert "past the end" in caplog.text


def test_the_index_of_an_array_job_picks_the_line(tmp_path, encoder_file, monkeypatch):
    keys = [ND_KEYS[0], UNDATED_KEY]
    for key in keys:
        write_scene(tmp_path, key, scene_pixels(16, 16))
    units, lines = make_plan(tmp_path / "plan.gz", keys, tmp_path)
    assert [line.partition for line in lines] == ["id-2015", "nd-2019"]
    monkeypatch.setenv("AWS_BATCH_JOB_ARRAY_INDEX", "1")
    argv = flags(units, 1, tmp_path / "shards", encoder_file)
    at = argv.index("--index")
    del argv[at : at + 2]
    embed.main(argv)
    assert f"{lines[1].name}.parquet" in read_files(tmp_path / "shards")


def test_a_plan_of_worldcover_is_refused(tmp_path, capsys):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1))
    settings = {"archive": str(tmp_path), "years": [2021], "region": [10, 45, 11, 46], "chip_size": 16}
    plans.write("worldcover", tmp_path / "plan.gz", **settings, pixels_per_degree=48)
    code, stderr = run_failing_job(capsys, flags(tmp_path / "plan.gz", 0, tmp_path / "shards", "not-even-there"))
    assert code == 2
    assert "expected a plan of naip, got one of worldcover" in stderr


@pytest.mark.parametrize(("size", "more"), [(0.6, []), (2.5, []), (2.5, ["--lattice=utm", "--lattice-gsd=1.5"])])
def test_an_actual_gsd_is_the_pixel_size_of_each_scene_or_of_the_lattice(tmp_path, run_naip, encoder, size, more):
    transform = rasterio.transform.from_origin(5e5, 5.2e6, size, size)
    write_scene(tmp_path, ND_KEYS[0], scene_pixels(80, 80), transform=transform)
    write_scene(tmp_path, ND_KEYS[1], scene_pixels(80, 80), transform=rasterio.transform.from_origin(5e5, 5.2e6, 1, 1))
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:2], tmp_path)
    rows, _ = run_naip(units, 0, "--gsd", "actual", "--metadata", "zeros", *more)
    assert sorted({r["pixel_size"] for r in rows}) == pytest.approx([1.5] if more else sorted([1.0, size]))
    source = NaipSource(
        ND_KEYS[:2], archive=str(tmp_path), chip=16, max_nodata=0.05,
        lattice="utm" if more else "scene", lattice_gsd=1.5,
    )  # fmt: skip
    source.check()
    pixels = {c.chip_id: c.pixels for c in source.chips(read_ahead(source.reads(), 1, 1 << 30)) if isinstance(c, Chip)}
    assert len(rows) == len(pixels)
    for row in rows[:: len(rows) // 6]:
        right = class_token(encoder, pixels[row["chip_id"]], gsd=row["pixel_size"])
        assert row["embeddings"] == pytest.approx(right, abs=1e-4)
        assert row["embeddings"] != pytest.approx(class_token(encoder, pixels[row["chip_id"]]), abs=1e-4) or (
            row["pixel_size"] == 1
        )


# --------------------------------------------------------------------------------------------------- the common lattice


def test_the_common_lattice_is_in_the_metadata_and_changes_the_fingerprint(tmp_path, run_naip):
    write_scene(tmp_path, ND_KEYS[0], scene_pixels(80, 80))
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)
    options = [["--lattice=utm"], ["--lattice=utm", "--lattice-gsd=0.6"], []]
    abouts = []
    for n, more in enumerate(options):
        rows, ledger = run_naip(units, 0, *more, folder=tmp_path / str(n))
        assert ledger_closes(ledger, rows)
        abouts.append(
            embeddings_file.read_metadata(next(p for p in (tmp_path / str(n)).iterdir() if "ledger" not in p.name))
        )
    assert [a["lattice"] for a in abouts] == [chip_layout(16, "utm", 1.0), chip_layout(16, "utm", 0.6), chip_layout(16)]
    assert len({a["fingerprint"] for a in abouts}) == 3
    assert [a["gsd"] for a in abouts] == [1.0] * 3


def test_aligned_edges_on_the_common_lattice_are_refused_before_any_read(tmp_path, capsys, encoder_file):
    units, _ = make_plan(tmp_path / "plan.gz", ND_KEYS[:1], tmp_path)
    code, stderr = run_failing_job(
        capsys, flags(units, 0, tmp_path / "shards", encoder_file, "--lattice", "utm", "--edge", "align")
    )
    assert (code, "edge: expected drop with lattice utm" in stderr) == (2, True)
    assert read_files(tmp_path / "shards") == {}


def test_help_shows_every_flag_and_does_not_import_torch():
    check_help("naip", ("--index", "--edge", "--lattice", "--lattice-gsd", "--metadata", "--expect-fingerprint"))


# --------------------------------------------------------------------------------- types, kinds, and patches of vectors


ALL_KINDS = ("--vector-dtype", "int8", "--embedding", "both", "--patches")


@pytest.mark.parametrize("where", ["disk", "store"])
def test_a_job_writes_int8_both_kinds_and_patches_with_their_metadata(
    tmp_path, request, run_naip, encoder, encoder_file, where
):
    pixels = {key: scene_pixels(40, 56, n) for n, key in enumerate(ND_KEYS[:2])}
    for key, values in pixels.items():
        write_scene(tmp_path, key, values)
    units, lines = make_plan(tmp_path / "plan.gz", ND_KEYS[:2], tmp_path)
    folder = str(tmp_path / "kinds") if where == "disk" else f"{request.getfixturevalue('bucket')}/kinds"
    checkpoints = storage.join(folder.replace("kinds", "checkpoints"))
    options = [*ALL_KINDS, "--checkpoints", checkpoints, "--batch-size", "4"]
    embed.main(flags(units, 0, folder, encoder_file, *options))
    uris = storage.listing(folder)
    shard = storage.join(folder, f"{lines[0].name}.parquet")
    assert list(uris) == sorted([shard, ledger_name(shard), shard.replace(".parquet", ".patches.parquet")])
    assert not storage.listing(checkpoints), "the shard is complete"
    with (
        storage.local_copy(shard) as path,
        storage.local_copy(shard.replace(".parquet", ".patches.parquet")) as patch_path,
    ):
        rows, patches = pq.read_table(path), pq.read_table(patch_path)
    about = json.loads(rows.schema.metadata[b"kiln"])
    assert (about["vector_dtype"], about["embedding"]) == ("int8", "both")
    assert about["dequantisation"]["embeddings_mean"] == "embeddings_mean * scale_mean"
    assert about["patches"] == {"shape": [2, 2, 32], "vector_dtype": "float16"}
    assert json.loads(patches.schema.metadata[b"kiln"]) == about
    assert patches["chip_id"].equals(rows["chip_id"])
    tokens = np.array(patches["patches"].to_pylist(), np.float32).reshape(len(rows), 4, 32)
    plain, _ = run_naip(units, 0, "--batch-size", 4, folder=tmp_path / "plain")
    exact = np.array([r["embeddings"] for r in plain])
    assert np.abs(vectors.read(rows) - exact).max() <= np.abs(exact).max() / 250
    mean = vectors.read(rows, "embeddings_mean")
    assert np.abs(mean - tokens.mean(axis=1)).max() <= np.abs(tokens).max() / 100
    before = {uri: storage.read_bytes(uri) for uri in uris}
    embed.main([*flags(units, 0, folder, encoder_file, *options), "--overwrite"])
    assert {uri: storage.read_bytes(uri) for uri in storage.listing(folder)} == before


def test_kinds_types_and_patches_change_the_fingerprint_and_defaults_do_not():
    settings = {
        "weights": "a5" * 32, "precision": "float32", "metadata": "zeros", "gsd": "as_trained", "max_nodata": 0.05,
        "max_cloud": None, "lattice": {"chip_size": 16},
    }  # fmt: skip
    naip = get_archive("naip")
    identity = {"sensor": naip.sensor, "recipes": {"clay": RECIPE, "naip": naip.recipe}}
    plain = fingerprint("naip", dtype="float32", **identity, **settings)
    assert plain == fingerprint("naip", dtype="float32", embedding="class", patches=False, **identity, **settings)
    assert plain == digest(
        {
            "dataset": "naip", "embedding": "class", "vector_dtype": "float32", **settings,
            "sensor": asdict(naip.sensor), "recipes": identity["recipes"],
        }
    )  # fmt: skip
    others = [{"dtype": "int8"}, {"embedding": "mean"}, {"embedding": "both"}, {"patches": True}]
    seen = {fingerprint("naip", **identity, **({"dtype": "float32"} | other | settings)) for other in others}
    assert len({plain, *seen}) == 5
