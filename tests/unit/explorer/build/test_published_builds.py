"""Databases of published files."""

import json
import subprocess
import sys

import geopandas
import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.errors import ConfigError, SourceError
from kiln.explorer.build import Select, build, builder
from kiln.explorer.database import ExplorerDatabase
from scripts import build_index
from tests import ROOT
from tests.support.builds import (
    ENTRY,
    build_database,
    file_times,
    find_published,
    read_vectors,
    write_published,
)
from tests.support.explorers import similar
from tests.support.products import DIM, shard_metadata


def test_a_folder_of_published_files_becomes_an_explorer_in_one_command(tmp_path):
    wanted = write_published(tmp_path / "synced", "36LXK", 12) | write_published(tmp_path / "synced", "36LYK", 7)
    entries = json.dumps([ENTRY | {"files": str(tmp_path / "synced")}])
    db = tmp_path / "db"
    build_index.main(["--published", entries, "--db", str(db), "--record", str(tmp_path / "r.json")])
    assert read_vectors(db) == wanted
    reader = ExplorerDatabase(str(db))
    (chip,), vectors = reader.chips(["tiles:36LXK-3"])
    assert (chip.dataset, chip.year, chip.nodata_fraction) == ("tiles", 2024, None)
    assert reader.column("cell").to_pylist()[0] == "S11E030"
    assert chip.source.endswith("synced/36LXK_2024-01-01_2025-01-01.parquet")
    assert similar(reader, vectors[0], 1)[0]["chip_id"] == "tiles:36LXK-3"
    assert {k: reader.metadata["tiles"][k] for k in ("model", "dimensions")} == {
        "model": "another model",
        "dimensions": 8,
    }
    assert len(json.loads((tmp_path / "r.json").read_text())["published"]) == 2


def test_files_with_a_crs_in_the_footer_are_indexed(tmp_path):
    """LanceDB takes batches in a thread of its own, in which PROJ crashes: a process of its own shows it."""
    wanted = write_published(tmp_path / "synced", "36LXK", 12) | write_published(tmp_path / "synced", "36LYK", 7)
    for path in (tmp_path / "synced").iterdir():
        rows = pq.read_table(path).to_pandas()
        points = geopandas.GeoSeries.from_wkb(rows.pop("geometry"), crs="EPSG:4326")
        geopandas.GeoDataFrame(rows, geometry=points).to_crs("EPSG:32636").to_parquet(path)
    entries = json.dumps([ENTRY | {"files": str(tmp_path / "synced")}])
    db, record = tmp_path / "db", tmp_path / "r.json"
    command = [sys.executable, "-m", "scripts.build_index", "--published", entries, "--db", db, "--record", record]
    finished = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert read_vectors(db) == wanted


def test_published_files_grow_change_and_vanish(tmp_path, monkeypatch):
    folder, db = tmp_path / "synced", tmp_path / "db"
    first = write_published(folder, "36LXK", 12)
    build([], [], str(db), Select(), find_published(folder))
    second = write_published(folder, "36LYK", 7)
    read = []
    whole = builder.table_rows
    monkeypatch.setattr(builder, "table_rows", lambda s, *a: read.append(s.partition[:5]) or whole(s, *a))
    build([], [], str(db), Select(), find_published(folder))
    assert read_vectors(db) == first | second
    assert read == ["36LYK"], "only the new file is read"
    changed = write_published(folder, "36LXK", 9, seed=1)
    build([], [], str(db), Select(), find_published(folder))
    assert read_vectors(db) == changed | second
    (folder / "36LYK_2024-01-01_2025-01-01.parquet").unlink()
    build([], [], str(db), Select(), find_published(folder))
    assert read_vectors(db) == changed
    before = file_times(db)
    build([], [], str(db), Select(), find_published(folder))
    assert file_times(db) == before


def test_select_and_max_rows_hold_for_published_files(tmp_path):
    write_published(tmp_path / "synced", "36LXK", 12)
    sets = find_published(tmp_path / "synced")
    assert build([], [], str(tmp_path / "a"), Select(bbox=(30, -11, 30.5, -10)), sets)["rows"] == 5
    with pytest.raises(ConfigError, match="leaves no chip"):
        build([], [], str(tmp_path / "b"), Select(years=(2019,)), sets)
    with pytest.raises(ConfigError, match=r"max_rows: expected at most 11 chips, got 12"):
        build([], [], str(tmp_path / "c"), Select(max_rows=11), sets)


def test_duplicate_ids_in_published_files_are_refused(tmp_path):
    write_published(tmp_path / "synced", "36LXK", 5)
    write_published(tmp_path / "synced" / "again", "36LXK", 3)
    with pytest.raises(SourceError, match=r"tiles:36LXK-0 is there already"):
        build([], [], str(tmp_path / "db"), Select(), find_published(tmp_path / "synced"))


def test_dropped_rows_are_logged(tmp_path, caplog):
    write_published(tmp_path / "synced", "36LXK", 5)
    path = tmp_path / "synced" / "36LXK_2024-01-01_2025-01-01.parquet"
    rows = pq.read_table(path)
    vectors = np.array(rows["embedding"].to_pylist())
    vectors[2] = np.nan
    pq.write_table(rows.set_column(1, "embedding", pa.array(vectors.tolist())), path)
    with caplog.at_level("WARNING"):
        assert build([], [], str(tmp_path / "db"), Select(), find_published(tmp_path / "synced"))["rows"] == 4
    assert "tiles: 1 rows dropped: the vector is missing, not finite or beyond float16" in caplog.text


def test_published_vectors_of_another_model_or_length_are_refused(tmp_path, two):
    write_published(tmp_path / "synced", "36LXK", 5)
    write_published(tmp_path / "wide", "36LYK", 5, dim=16)
    record, product = [two[0].record_file], [two[0].uri]
    with pytest.raises(ConfigError, match=r"tiles: another model, 8 numbers; worldcover: Clay v1\.5, class, 8 numbers"):
        build(record, product, str(tmp_path / "db"), Select(), find_published(tmp_path / "synced"))
    both = [*find_published(tmp_path / "synced"), *find_published(tmp_path / "wide", name="wide")]
    with pytest.raises(ConfigError, match="2 different weights, kinds or lengths"):
        build([], [], str(tmp_path / "db"), Select(), both)
    assert not (tmp_path / "db").exists()


def test_published_vectors_of_the_same_weights_are_searched_with_kilns_own(tmp_path, two):
    write_published(tmp_path / "synced", "36LXK", 5)
    same = {"model": "Clay v1.5", "weights": shard_metadata()["weights_sha256"], "embedding": "class"}
    build(
        [two[0].record_file], [two[0].uri], str(tmp_path / "db"), Select(), find_published(tmp_path / "synced", **same)
    )
    hits = similar(ExplorerDatabase(str(tmp_path / "db")), np.ones(DIM), 105)
    assert {h["dataset"] for h in hits} == {"worldcover", "tiles"}
    assert len(hits) == 105


def test_a_table_of_several_models_is_refused(tmp_path, two):
    """No build writes such a table, but another program can."""
    db = tmp_path / "db"
    build_database(db, two[0])
    table = lancedb.connect(str(db)).open_table("chips")
    rows = table.search().limit(100).to_arrow()
    names = pa.array(["worldcover"] * 50 + ["tiles"] * 50)
    metadata = json.dumps({"worldcover": shard_metadata(), "tiles": shard_metadata(model="another model")})
    mixed = rows.set_column(rows.schema.get_field_index("dataset"), "dataset", names)
    other = lancedb.connect(str(tmp_path / "mixed")).create_table(
        "chips", mixed.replace_schema_metadata({"kiln": metadata})
    )
    other.tags.create("ready", other.version)
    with pytest.raises(ConfigError, match="expected vectors of one model, got 2"):
        ExplorerDatabase(str(tmp_path / "mixed"))


def test_nothing_to_index_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as e:
        build_index.main(["--db", str(tmp_path / "db"), "--record", str(tmp_path / "r.json")])
    assert e.value.code == 2
    assert "nothing to index" in capsys.readouterr().err
