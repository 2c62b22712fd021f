"""`kiln export`: flags become filters and columns, the last line, results of a search, errors."""

import json
import logging
from datetime import date

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pyogrio
import pytest
import shapely

from kiln.cli import export
from kiln.formats.bounding_box import BoundingBox
from kiln.io import storage
from kiln.product.rows.row_filter import RowFilter
from tests.support.exports import write_chips
from tests.support.searches import CHIP, search_output

SQUARE = {"type": "Polygon", "coordinates": [[[-60, -30], [60, -30], [60, 30], [-60, 30], [-60, -30]]]}


@pytest.fixture
def chips(tmp_path):
    """Write 100 chips; return the path of the file."""
    write_chips(tmp_path / "chips.parquet")
    return str(tmp_path / "chips.parquet")


def run(*args):
    """Run the command; return its exit status."""
    try:
        export.main([str(arg) for arg in args])
    except SystemExit as e:
        return e.code
    return 0


def test_flags_are_the_fields_of_a_filter(tmp_path):
    (tmp_path / "area.geojson").write_text(json.dumps(SQUARE))
    (tmp_path / "ids.txt").write_text("u:1\n\n u:2 \r\n")
    args = export.parser().parse_args(
        ["chips.parquet", "--out=a.csv", "--bbox=170,-40,-170,40", f"--area={tmp_path}/area.geojson", "--year=2020",
         "--year=2021", "--from=2020-01-31", "--to=2021-06-30", "--max-nodata=0.5", "--max-cloud=0",
         f"--ids={tmp_path}/ids.txt"]
    )  # fmt: skip
    assert export.row_filter_of(args) == RowFilter(
        bbox=BoundingBox(170, -40, -170, 40),
        area=shapely.Polygon(SQUARE["coordinates"][0]),
        first_day=date(2020, 1, 31),
        last_day=date(2021, 6, 30),
        years=(2020, 2021),
        max_nodata=0.5,
        max_cloud=0.0,
        chip_ids=frozenset({"u:1", "u:2"}),
    )


def test_the_last_line_has_file_chips_and_size(chips, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert run(chips, "--out", tmp_path / "a.gpkg", "--year", 2021, "--columns", "chip_id, year") == 0
        assert run(chips, "--out", tmp_path / "a", "--format", "npy") == 0
    assert caplog.messages[0].startswith(f"{tmp_path}/a.gpkg: 33 chips, 1")
    assert caplog.messages[-1].startswith(f"{tmp_path}/a: 100 chips, ")
    assert caplog.messages[-1].endswith("kB in 3 files")
    frame = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert list(frame.columns) == ["chip_id", "year", "geometry"]
    assert set(frame["year"]) == {2021}


@pytest.mark.parametrize("with_vectors", [True, False])
def test_the_results_of_a_search_are_exported_in_their_order(db, tmp_path, capsys, with_vectors):
    hits = str(tmp_path / "hits.parquet")
    search_output(capsys, db, "--chip", CHIP, "-k", "9", "--parquet", hits, *["--embeddings"][: int(with_vectors)])
    before = gpd.read_parquet(hits)
    for name in ("a.gpkg", "a.geojson"):
        assert run(hits, "--out", tmp_path / name, "--year", 2021) == 0
        frame = pyogrio.read_dataframe(tmp_path / name)
        expected = before[before["year"] == 2021]
        assert frame["chip_id"].tolist() == expected["chip_id"].tolist()
        assert frame["rank"].tolist() == expected["rank"].tolist()
        assert np.allclose(frame["similarity"], expected["similarity"])
    assert json.loads((tmp_path / "a.geojson").read_text())["kiln"]["products"][0]["dataset"] == "worldcover"
    assert run(hits, "--out", tmp_path / "a.csv") == 0
    assert (tmp_path / "a.csv").read_text().count('"lon"') == 1
    assert run(hits, "--out", tmp_path / "a.parquet") == 0
    assert pq.read_schema(tmp_path / "a.parquet").names == pq.read_schema(hits).names
    code = run(hits, "--out", tmp_path / "a", "--format", "npy")
    if with_vectors:
        assert np.array_equal(np.load(tmp_path / "a/vectors.npy"), np.stack(before["embeddings"]))
    else:
        assert code == 2
        assert "expected vectors, got a file without them. Search with --parquet" in capsys.readouterr().err


def test_ids_may_be_on_s3(chips, bucket, tmp_path):
    storage.write_bytes(f"{bucket}/ids.txt", b"\xef\xbb\xbfu:7\r\nu:5\r\n")  # as Windows writes it
    assert run(chips, "--out", tmp_path / "a.geojson", "--ids", f"{bucket}/ids.txt") == 0
    assert pyogrio.read_dataframe(tmp_path / "a.geojson")["chip_id"].tolist() == ["u:5", "u:7"]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--out=a.shp"], "a.shp: expected a name that ends with one of .parquet, .gpkg, .geojson, .csv"),
        (["--out=a.csv", "--bbox=1,2,3"], "argument --bbox: expected 4 numbers"),
        (["--out=a.csv", "--bbox=43,-98,44,-97"], "--bbox: expected [west, south, east, north]"),
        (["--out=a.csv", "--bbox=10,0,-10,1"], "which is 340 degrees wide"),
        (["--out=a.csv", "--area=gone.geojson"], "--area: expected a GeoJSON file, got gone.geojson"),
        (["--out=a.csv", "--from=soon"], "expected from as a day such as 2021-06-30, got soon"),
        (["--out=a.csv", "--from=2021-01-02", "--to=2021-01-01"], "expected first <= last"),
        (["--out=a.csv", "--max-cloud=7"], "max_cloud: expected a fraction from 0 to 1"),
        (["--out=a.csv", "--ids=gone.txt"], "--ids: expected a text file, got gone.txt"),
        (["--out=a.csv", "--ids=/dev/null"], "--ids: expected one chip_id a line, got an empty file"),
        (["--out=a.csv", "--ids="], "--ids: expected a text file"),
        (["--out=a.csv", "--area="], "--area: expected a GeoJSON file"),
        (["--out=a.csv", "--from="], "expected from as a day such as 2021-06-30"),
        (["--out=a.csv", "--columns="], "--columns: expected names with commas between them, got ''"),
        (["--out=a.csv", "--columns=chip_id,,year"], "--columns: expected names with commas between them"),
        (["--out=a.csv", "--columns=nothing"], "expected columns of the product, got nothing. It has chip_id, "),
        (["--out=a.csv", "--version=002"], "version: expected format published, got csv"),
        (["--out=a", "--format=published"], "expected the record or folder of a product, got one file"),
        (["--out=a", "--format=zarr"], "argument --format: invalid choice: 'zarr'"),
        ([], "the following arguments are required: --out"),
    ],
)
def test_wrong_flags_end_with_2_and_one_line(chips, here, capsys, args, reason):
    assert run(chips, *args) == 2
    message = capsys.readouterr().err
    assert reason in message
    assert "Traceback" not in message
    assert [path.name for path in here.iterdir()] == ["chips.parquet"]


def test_a_source_that_is_missing_ends_with_1(here, capsys):
    assert run("gone.parquet", "--out", "a.csv") == 1
    assert "gone.parquet: expected a Parquet file of chips, got no file" in capsys.readouterr().err
