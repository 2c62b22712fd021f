"""WorldCover tiles that are missing or damaged: rows of the ledger, next to tiles that are embedded."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.transform import from_origin

from kiln.archives import raster_reading
from kiln.archives.worldcover.lattice import Column, Lattice, region_columns
from kiln.archives.worldcover.source import WorldCoverSource
from kiln.archives.worldcover.tiles import (
    tile_corner,
)
from kiln.engine import pipeline
from kiln.errors import ConfigError
from kiln.model import clay, embedder
from tests.support.archives import random_pixels, write_tile
from tests.support.chips import make_info
from tests.support.worldcover_source import make_source


def half_pixel(path: Path, east: float, south: float) -> None:
    write_like(path, transform=from_origin(path_west(path) + east / 48, 46 - south / 48, 1 / 48, 1 / 48))


def path_west(path: Path) -> int:
    return tile_corner(path.stem.split("_")[5])[0]


def write_like(path: Path, pixels: np.ndarray | None = None, **profile: Any) -> None:
    with rasterio.open(path) as src:
        options = src.profile | {"tiled": False} | profile
        pixels = src.read() if pixels is None else pixels
    for option in ("blockxsize", "blockysize"):
        options.pop(option, None)
    options |= {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", **options) as dst:
        dst.write(pixels)


def garble_last_strip(path: Path) -> None:
    with rasterio.open(path) as src:
        last = src.height // src.block_shapes[0][0] - 1
        at = int(src.get_tag_item(f"BLOCK_OFFSET_0_{last}", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[at : at + 100] = b"\xff" * 100  # not the start of a deflate stream
    path.write_bytes(data)


IN_GRADS = CRS.from_epsg(4326).to_wkt().replace('"degree",0.0174532925199433', '"grad",0.01570796326794897')
IN_GRADS = IN_GRADS.replace(',AUTHORITY["EPSG","9122"]', "").replace(',AUTHORITY["EPSG","4326"]', "")
DAMAGES_BEFORE_PLANNING = {
    "not a tiff": (lambda p: p.write_bytes(b"not a tiff " * 100), "not a readable GeoTIFF"),
    "a header alone": (lambda p: p.write_bytes(p.read_bytes()[:100]), "not a readable GeoTIFF|unreadable"),
    "no byte": (lambda p: p.write_bytes(b""), "empty, 0 bytes"),
    "three bands": (
        lambda p: write_like(p, random_pixels(48, 1, bands=3)),
        "expected the 4 bands R G B NIR, got 3 bands",
    ),
    "bytes": (lambda p: write_like(p, random_pixels(48, 1).astype(np.uint8)), "expected pixels of uint16, got uint8"),
    "other CRS": (lambda p: write_like(p, crs="EPSG:3857"), "expected the CRS EPSG:4326, got EPSG:3857"),
    "other unit": (lambda p: write_like(p, crs=IN_GRADS), "expected the CRS EPSG:4326, got GEOGCS"),
    "in feet": (lambda p: write_like(p, crs="+proj=utm +zone=32 +units=us-ft"), "expected the CRS EPSG:4326, got PROJ"),
    "no CRS": (lambda p: write_like(p, crs=None), "expected a CRS in the file or its .aux.xml, got none"),
    "half a pixel east": (
        lambda p: half_pixel(p, 0.5, 0),
        r"on the 1/48 degree lattice, got one that is off by up to 0\.50 px",
    ),
    "half a pixel south": (
        lambda p: half_pixel(p, 0, 0.5),
        r"on the 1/48 degree lattice, got one that is off by up to 0\.50 px",
    ),
    "coarser pixels": (
        lambda p: write_like(p, transform=from_origin(path_west(p), 46, 1 / 47, 1 / 48)),
        r"on the 1/48 degree lattice, got one that is off by up to 1\.02 px",
    ),
    "another place": (lambda p: write_like(p, transform=from_origin(0, 0, 1 / 48, 1 / 48)), "on the 1/48 degree"),
    "other size": (lambda p: write_like(p, random_pixels(24, 1)), "expected 48 x 48 px, got 24 x 24"),
}
DAMAGES_AFTER_PLANNING = {
    "emptied": (lambda p: p.write_bytes(b""), "changed since the archive was listed"),
    "replaced": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "changed since the archive was listed"),
    "deleted": (lambda p: p.unlink(), "removed since the archive was listed"),
}


def embed(source: WorldCoverSource, encoder: clay.ClayEncoder, path: Path) -> pipeline.EmbeddedShard:
    """Embed a source with the engine, as a job does."""
    source.info = make_info(sensor=source.info.sensor)
    source.check()
    return pipeline.embed(
        source,
        lambda: encoder,
        encoder.geometry.dim,
        path,
        {},
        policy=embedder.EmbedPolicy("zeros"),
        budget=pipeline.Budget(batch_size=16, read_threads=2),
        max_failed_fraction=1.0,
    )


@pytest.mark.parametrize("side", ["west", "east"])
@pytest.mark.parametrize("kind", [*DAMAGES_BEFORE_PLANNING, *DAMAGES_AFTER_PLANNING])
def test_a_damaged_tile_fails_in_the_ledger_and_the_rest_is_embedded(tmp_path, encoder, kind, side):
    paths = {w: write_tile(tmp_path, 2021, w, 45, random_pixels(48, w), compress="deflate") for w in (10, 11)}
    bad = paths[10 if side == "west" else 11]
    damage, message = (DAMAGES_BEFORE_PLANNING | DAMAGES_AFTER_PLANNING)[kind]
    if kind in DAMAGES_BEFORE_PLANNING:
        damage(bad)
    lattice = Lattice(16, 48)  # column 405 begins at longitude 10, column 408 at 11
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 12, 46]), max_nodata=0.9)
    if kind in DAMAGES_AFTER_PLANNING:
        damage(bad)
    outcome = embed(source, encoder, tmp_path / "out.parquet")

    ledger = outcome.ledger.to_pylist()
    assert len(ledger) == 6
    for entry in ledger:
        assert (
            entry["expected"] == sum(entry[k] for k in ("embedded", "skipped_nodata", "skipped_cloud", "failed")) == 3
        )
        assert entry["status"] in ("embedded", "failed")
    broken, intact = (ledger[:3], ledger[3:]) if side == "west" else (ledger[3:], ledger[:3])
    assert [e["failed"] for e in broken] == [3, 3, 3]
    for entry in broken:
        assert str(bad) in entry["reason"]
        assert re.search(message, entry["reason"]), entry["reason"]
    assert [(e["status"], e["embedded"], e["reason"]) for e in intact] == [("embedded", 3, "")] * 3
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == outcome.rows == 9


@pytest.mark.parametrize("how", ["truncated", "garbled"])
def test_a_partly_damaged_tile_loses_only_the_chips_of_that_part(tmp_path, encoder, monkeypatch, how):
    monkeypatch.setattr(raster_reading, "MIN_STRIP_ROWS", 16)
    options = {"compress": "deflate"} if how == "garbled" else {}
    path = write_tile(tmp_path, 2021, 10, 45, random_pixels(48, 1), blockysize=4, interleave="pixel", **options)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    else:
        garble_last_strip(path)
    lattice = Lattice(16, 48)
    outcome = embed(make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 11, 46])), encoder, tmp_path / "o")
    for entry in outcome.ledger.to_pylist():
        assert (entry["status"], entry["embedded"], entry["failed"]) == ("failed", 2, 1)
        assert f"{path}: not a readable GeoTIFF" in entry["reason"]
    rows = pq.read_table(tmp_path / "o", columns=["row"])["row"].to_pylist()
    assert rows == [12, 12, 12, 13, 13, 13]  # of 12 to 14


def test_a_missing_neighbour_is_nodata(tmp_path, encoder):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    lattice = Lattice(16, 40)
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45.2, 11.5, 45.6]), max_nodata=0.5)
    outcome = embed(source, encoder, tmp_path / "o")
    ledger = outcome.ledger.to_pylist()
    assert [e["status"] for e in ledger] == ["embedded"] * 3 + ["empty"] * (len(ledger) - 3)
    assert {e["reason"] for e in ledger[3:]} == {"no tile: open sea"}
    assert sum(e["failed"] for e in ledger) == 0


def test_a_column_over_open_sea_is_an_empty_file_and_a_ledger_row_without_loading_weights(tmp_path):
    write_tile(tmp_path, 2021, 10, 45, random_pixels(40, 1))
    lattice = Lattice(16, 40)
    source = make_source(tmp_path, lattice, region_columns(lattice, [20, 45, 20.3, 45.5]))

    def load() -> clay.ClayEncoder:
        raise AssertionError("weights were loaded")

    options = {"policy": embedder.EmbedPolicy("zeros"), "budget": pipeline.Budget(), "max_failed_fraction": 0.0}
    outcome = pipeline.embed(source, load, 32, tmp_path / "o.parquet", {}, **options)
    rows = pq.read_table(tmp_path / "o.parquet")
    assert len(rows) == outcome.rows == 0
    assert rows.schema.field("embeddings").type.list_size == 32
    for entry in outcome.ledger.to_pylist():
        assert (entry["status"], entry["reason"], entry["failed"]) == ("empty", "no tile: open sea", 0)
        assert entry["expected"] == entry["skipped_nodata"] > 0
        assert entry["etag"] == ""


def test_a_tile_of_only_nodata_is_empty_and_not_failed(tmp_path, encoder):
    write_tile(tmp_path, 2021, 10, 45, np.zeros((4, 40, 40), np.uint16))
    lattice = Lattice(16, 40)
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 11, 46]))
    outcome = embed(source, encoder, tmp_path / "o")
    assert outcome.rows == 0
    assert {(e["status"], e["reason"]) for e in outcome.ledger.to_pylist()} == {
        ("empty", "more nodata than max_nodata")
    }


def test_the_check_reports_an_archive_of_another_resolution(tmp_path):
    for west in (10, 11):
        write_tile(tmp_path, 2021, west, 45, random_pixels(24, west))
    lattice = Lattice(16, 48)
    source = make_source(tmp_path, lattice, region_columns(lattice, [10, 45, 12, 46]))
    with pytest.raises(ConfigError, match=r"expected 48 x 48 px, got 24 x 24\. Check pixels_per_degree, which is 48"):
        source.check()


@pytest.mark.parametrize(
    ("chip", "encode", "message"),
    [(20, "whole", "expected a multiple of 8"), (24, "quarters", "expected a multiple of 16")],
)
def test_chip_sizes_that_the_model_does_not_accept_are_config_errors(chip, encode, message):
    with pytest.raises(ConfigError, match=message):
        WorldCoverSource(Lattice(chip, 240), 2021, [Column(0, 0, 1)], [], root="x", max_nodata=0.1, encode=encode)
