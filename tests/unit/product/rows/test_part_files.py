"""Parts of a product: their order, footers, and files that are none."""

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.errors import ConfigError, SourceError
from kiln.product.rows.part_files import kiln_metadata, open_parts, part_uris
from tests.support.exports import write_chips


def test_folder_record_and_file_lead_to_files(grid):
    uris = [f"{grid.uri}/{file['name']}" for file in grid.record["files"]]
    assert len(uris) > 1
    assert part_uris(grid.record_file) == part_uris(grid.uri) == uris
    assert part_uris(uris[1]) == [uris[1]]


def test_a_footer_states_rows_columns_and_geometries(tmp_path):
    rows = write_chips(tmp_path / "chips.parquet", 40)
    (part,) = open_parts(str(tmp_path / "chips.parquet"))
    assert part.footer.num_rows == 40
    assert part.schema.equals(rows.schema)
    assert part.geometry_types == {"MultiPolygon", "Polygon"}
    assert kiln_metadata([part])["dataset"] == "worldcover"


def test_a_file_without_geo_metadata_has_unknown_geometries(tmp_path):
    rows = write_chips(tmp_path / "chips.parquet", 4)
    pq.write_table(rows.replace_schema_metadata(None), tmp_path / "plain.parquet")
    (part,) = open_parts(str(tmp_path / "plain.parquet"))
    assert part.geometry_types == set()
    assert kiln_metadata([part]) == {}


def test_other_files_are_refused(tmp_path):
    pq.write_table(pa.table({"chip_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ConfigError, match="expected a Parquet file of chips, got one without geometry, bbox"):
        open_parts(str(tmp_path / "other.parquet"))
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(SourceError, match="expected a Parquet file, got a damaged one"):
        open_parts(str(tmp_path / "text.parquet"))
    with pytest.raises(SourceError, match="expected a Parquet file of chips, got no file"):
        open_parts(str(tmp_path / "gone.parquet"))


def test_parts_of_an_earlier_layout_next_to_the_folder_of_chips_are_not_counted(grid, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(grid.uri, folder)
    for path in sorted((folder / "chips").iterdir()):
        shutil.copy(path, folder / path.name)  # as an interrupted merge over a product of Kiln 0.2 leaves them
    assert part_uris(str(folder)) == [str(folder / file["name"]) for file in grid.record["files"]]
    shutil.rmtree(folder / "chips")
    assert [Path(uri).name for uri in part_uris(str(folder))] == [
        Path(file["name"]).name for file in grid.record["files"]
    ]


def test_parts_with_other_columns_are_refused(grid, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(grid.uri, folder)
    last = folder / grid.record["files"][-1]["name"]
    pq.write_table(pq.read_table(last).drop_columns("stac_item"), last)
    with pytest.raises(SourceError, match=r"expected the columns of .*, got others. Merge the shards again"):
        open_parts(str(folder))


def test_a_part_that_its_record_names_is_not_left_out(grid, tmp_path):
    folder = copy_with_record(grid, tmp_path)
    (folder / grid.record["files"][-1]["name"]).unlink()
    for uri in (folder, f"{folder}/", f"{folder}.json"):
        with pytest.raises(SourceError, match="expected a Parquet file of chips, got no file"):
            open_parts(str(uri))


def test_a_part_of_another_product_is_refused_by_size_and_rows(grid, tmp_path):
    folder = copy_with_record(grid, tmp_path)
    first, last = (folder / grid.record["files"][n]["name"] for n in (0, -1))
    shutil.copy(last, first)
    with pytest.raises(
        SourceError, match=rf"{re.escape(str(first))}: expected .* as in its record, got .*\. Delete .*\.json"
    ):
        open_parts(str(folder))


def test_a_copy_without_its_record_is_read(grid, tmp_path):
    folder = copy_with_record(grid, tmp_path)
    Path(f"{folder}.json").unlink()
    assert len(open_parts(str(folder))) == len(grid.record["files"])


def copy_with_record(product, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(product.uri, folder)
    shutil.copy(product.record_file, f"{folder}.json")
    return folder
