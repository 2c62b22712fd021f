"""`kiln search` over small databases: run it, and compute its results with NumPy."""

import json

import numpy as np
import pytest

from kiln.archives.sentinel2 import columns as sentinel2
from kiln.archives.worldcover.lattice import Column
from kiln.cli import search
from kiln.explorer.build import Select, build
from kiln.formats import embeddings_file
from kiln.formats.ledger import LedgerEntry, ledger_table, write_ledger
from kiln.formats.records import Unit
from tests.support.chips import make_chip
from tests.support.products import WORLD, chip_at, merge_shards, random_vectors, shard_metadata

SIDE = 512 / 12000
COLUMNS = [Column(k, 0, 10) for k in range(10)]
PLACE = f"{-125 + 4.5 * SIDE},{50 - 3.5 * SIDE}"  # in column 4, row 3
CHIP = chip_at(WORLD, 2021, 4, 3).chip_id


def build_database(folder, *products):
    """Index the products in `folder`; return the path of the database."""
    build([m.record_file for m in products], [m.uri for m in products], str(folder / "db"), Select())
    return str(folder / "db")


def build_scene_database(run, grid):
    """Write a product `p` with record `p.json` of the chips of a scene's first row, and its database `db`.

    Return the footprints by chip_id from west to east.
    """
    footprints = grid.footprints()[0][0]
    extra = {column.name: None for column in sentinel2.COLUMNS}
    chips = [make_chip(n, footprint=f, chip_id=f"c{n:02d}", extra=extra) for n, f in enumerate(footprints)]
    kiln = shard_metadata(dataset="sentinel2", lattice={"chip_size": 256, "lattice": "scene", "edge": "drop"})
    with embeddings_file.ShardWriter(
        run / "s.parquet", embeddings_file.schema(8, "float32", sentinel2.COLUMNS, kiln)
    ) as out:
        out.append(chips, {"embeddings": np.random.default_rng(0).standard_normal((len(chips), 8), np.float32)})
    entry = LedgerEntry(Unit("sentinel2:s", len(chips), "s3://b/i", "e"), embedded=len(chips))
    write_ledger(run / "s.ledger.parquet", ledger_table([entry]))
    record = merge_shards(["s"], run, run / "p")
    (run / "p.json").write_text(json.dumps(record))
    build([str(run / "p.json")], [str(run / "p")], str(run / "db"), Select())
    return {c.chip_id: c.footprint for c in chips}


def search_output(capsys, db, *args):
    """Return what the command prints."""
    capsys.readouterr()
    search.main(["--db", db, *args])
    return capsys.readouterr().out


def search_error(capsys, db, *args):
    """Return the exit status and the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        search.main(["--db", db, *args])
    return e.value.code, capsys.readouterr().err


def nearest_chips(k, keep=lambda chip: True):
    """Return the k nearest chips of CHIP without itself, computed by NumPy: ids and cosines."""
    chips = [chip_at(WORLD, y, c, r) for y in (2020, 2021) for c in range(10) for r in range(10)]
    unit = random_vectors(chips).astype(np.float16).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    likes = unit @ unit[[c.chip_id for c in chips].index(CHIP)]
    order = sorted((i for i, c in enumerate(chips) if keep(c) and c.chip_id != CHIP), key=lambda i: -likes[i])[:k]
    return [chips[i].chip_id for i in order], [likes[i] for i in order]
