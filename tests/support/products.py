"""Shards and products without an encoder: random vectors, but Kiln's real writers, ledgers and merge."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import shapely

from kiln.archives.worldcover.columns import COLUMNS
from kiln.archives.worldcover.lattice import Column, Lattice, chip_id, shards, unit_id
from kiln.formats import embeddings_file, plan_file
from kiln.formats import vectors as vectors_
from kiln.formats.ledger import LedgerEntry, ledger_name, ledger_table, write_ledger
from kiln.formats.records import Chip, Dropped, Unit
from kiln.product.merge import MergeOptions, merge
from kiln.product.record import ProductRecord, write_record
from scripts import merge as merge_script

DIM = 8
WORLD = Lattice(512)  # the lattice of the published run
ITEM = "ESA_WorldCover_10m_{year}_v200_{tile}_S2RGBNIR"


def shard_metadata(**changes: Any) -> dict[str, Any]:
    """Return the `kiln` metadata of a shard, as a job writes it."""
    return {
        "dataset": "worldcover",
        "partition": "2021",
        "fingerprint": "f1" * 32,
        "model": "Clay v1.5",
        "weights_sha256": "a5" * 32,
        "checkpoint": "clay.ckpt",
        "untrained": False,
        "embedding": "class",
        "dimensions": DIM,
        "precision": "float32",
        "vector_dtype": "float32",
        "normalisation": {"bands": ["red"], "mean": [1.0], "std": [1.0]},
        "wavelengths": [0.665],
        "gsd": 10.0,
        "metadata": "zeros",
        "chip_size": 512,
        "lattice": {"chip_size": 512, "pixels_per_degree": 12000, "encode": "whole"},
        "limits": {"max_nodata": 0.05, "max_cloud": None},
        "recipes": {"clay": 1, "worldcover": 1},
        "software": {"kiln": "0"},
        "sources": {},
        **changes,
    }


def chip_at(lattice: Lattice, year: int, col: int, row: int, *, source: str = "", nodata: float = 0.0) -> Chip:
    """Return the chip at a place of the lattice, as the WorldCover source yields it, but without pixels."""
    x, y = lattice.x(col), lattice.y(row)
    west, south, east, north = (
        lattice.lon(x),
        lattice.lat(y + lattice.chip),
        lattice.lon(x + lattice.chip),
        lattice.lat(y),
    )
    name = f"tile-{int(np.floor((south + north) / 2))}-{int(np.floor((west + east) / 2))}"
    source = source or f"s3://esa-worldcover-s2/{year}/{name}.tif"
    return Chip(
        unit_id=unit_id(lattice, year, Column(col, 0, 1)),
        chip_id=chip_id(lattice, year, x, y),
        pixels=np.zeros((4, 1, 1), np.uint16),
        footprint=shapely.box(west, south, east, north),
        center=((west + east) / 2, (south + north) / 2),
        crs="EPSG:4326",
        x0=west,
        y0=north,
        pixel_size=1 / lattice.ppd,
        col=col,
        row=row,
        datetime=datetime(year, 6, 1, tzinfo=UTC),
        item_id=ITEM.format(year=year, tile=name),
        source=source,
        sources=(source,),
        nodata_fraction=nodata,
        extra={"year": year},
    )


def random_vectors(chips: Sequence[Chip], dim: int = DIM, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Return normal random vectors [n, dim]. A chip's vector does not depend on the other chips."""
    return np.stack(
        [np.random.default_rng([seed, c.extra["year"], c.col & 0xFFFF, c.row]).standard_normal(dim) for c in chips]
        or [np.empty(dim)]
    )[: len(chips)].astype(dtype)


def stored(chips: Sequence[Chip], values: np.ndarray, kiln: dict[str, Any]) -> vectors_.Columns:
    """Return the columns that a file with this `kiln` metadata stores. Mean vectors are drawn with another seed."""
    kinds = {name: values if kind == kiln["embedding"] or kind == "class" else random_vectors(chips, values.shape[1], 1)
             for name, kind in vectors_.KINDS[kiln["embedding"]].items()}  # fmt: skip
    return vectors_.store({name: np.asarray(v, np.float32) for name, v in kinds.items()}, kiln["vector_dtype"])


@dataclass(frozen=True)
class MergedProduct:
    """A merged product: the path of its record, the record, its folder and its plan."""

    record_file: str
    record: dict[str, Any]
    uri: str
    plan: str

    def rows(self) -> pa.Table:
        """Return all rows of the product, in order."""
        import pyarrow.parquet as pq

        return pa.concat_tables(pq.read_table(f"{self.uri}/{f['name']}") for f in self.record["files"])


Vectors = Callable[[Sequence[Chip]], np.ndarray]


def write_shard(
    folder: Path,
    name: str,
    columns: Sequence[Column],
    *,
    kiln: dict[str, Any],
    lattice: Lattice = WORLD,
    vectors: Vectors | None = None,
    skip: Callable[[int, int], bool] = lambda col, row: False,
    fail: Callable[[int], str] = lambda col: "",
    source: str = "",
    row_group: int = 32768,
) -> list[Chip]:
    """Write one shard and its ledger; return its chips.

    `skip` selects the chips that count as nodata. `fail` returns the reason why a column fails, or an empty string.
    """
    folder.mkdir(parents=True, exist_ok=True)
    year, dim, store = int(kiln["partition"]), kiln["dimensions"], kiln["vector_dtype"]
    entries, chips = [], []
    for c in columns:
        unit = Unit(unit_id(lattice, year, c), c.rows, "s3://esa-worldcover-s2", "e1")
        entry = LedgerEntry(unit)
        for row in range(c.row, c.row + c.rows):
            if fail(c.col):
                entry.record_dropped(Dropped(unit.unit_id, "failed", 1, fail(c.col)))
            elif skip(c.col, row):
                entry.record_dropped(Dropped(unit.unit_id, "nodata", 1, "no tile: open sea"))
            else:
                entry.embedded += 1
                chips.append(chip_at(lattice, year, c.col, row, source=source))
        entries.append(entry)
    kiln = kiln | {"sources": {s: {"size": 1} for s in sorted({c.source for c in chips})}}
    values = vectors(chips) if vectors else random_vectors(chips, dim)
    columns_ = embeddings_file.schema(dim, store, COLUMNS, kiln, kiln["embedding"])
    with embeddings_file.ShardWriter(folder / f"{name}.parquet", columns_, row_group) as out:
        if chips:
            out.append(chips, stored(chips, values, kiln))
    write_ledger(Path(ledger_name(str(folder / f"{name}.parquet"))), ledger_table(entries))
    return chips


def plan_lines(lattice: Lattice, year: int, columns: Sequence[Column], per_shard: int) -> list[plan_file.ShardPlan]:
    """Return the lines of a plan without tiles."""
    return [
        plan_file.ShardPlan(
            dataset="worldcover",
            partition=str(year),
            name=s.name,
            units=tuple(unit_id(lattice, year, c) for c in s.columns),
            chip_size=lattice.chip,
            expected=sum(c.rows for c in s.columns),
            read_bytes=0,
            archive="s3://esa-worldcover-s2",
            details={"columns": [[c.col, c.row, c.rows] for c in s.columns]},
        )
        for s in shards(lattice, year, columns, per_shard)
    ]


def write_shards(
    run: Path,
    year: int = 2021,
    columns: Sequence[Column] = tuple(Column(k, 0, 12) for k in range(12)),
    *,
    per_shard: int = 4,
    kiln: dict[str, Any] | None = None,
    lattice: Lattice = WORLD,
    **options: Any,
) -> tuple[str, list[str], Path]:
    """Write a plan `plan-<year>.jsonl` in `run` and its shards in `shards/<year>/`.

    Return the path of the plan, the names of the shards and their folder.
    """
    kiln = (kiln or shard_metadata()) | {"partition": str(year)}
    lines = plan_lines(lattice, year, columns, per_shard)
    folder = run / "shards" / str(year)
    for line in lines:
        columns_ = [Column(*c) for c in line.details["columns"]]
        write_shard(folder, line.name, columns_, kiln=kiln, lattice=lattice, **options)
    plan = str(run / f"plan-{year}.jsonl")
    plan_file.write_plan(lines, plan)
    return plan, [line.name for line in lines], folder


def merge_shards(
    names: Sequence[str],
    shards: Path | str,
    product: Path | str,
    *,
    memory: int = 1 << 30,
    row_group: int = 50_000,
    part_bytes: int = 2_000_000_000,
    deduplicate: bool = False,
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """Merge shards whose ledgers are in the same folder; return the record's JSON."""
    options = MergeOptions(deduplicate, memory, row_group, part_bytes)
    return merge(names, str(shards), str(shards), str(product), missing=missing, options=options).as_json()


def make_product(run: Path, year: int = 2021, *, product: str = "", **options: Any) -> MergedProduct:
    """Write shards and merge them. `product` is the product's folder (default: `run/products/<year>`)."""
    merging = {k: options.pop(k) for k in ("memory", "row_group", "part_bytes") if k in options}
    plan, names, folder = write_shards(run, year, **options)
    uri = product or str(run / "products" / str(year))
    record = merge_shards(names, folder, uri, **merging)
    write_record(f"{uri}.json", ProductRecord.from_json(record))
    return MergedProduct(f"{uri}.json", record, uri, plan)


def run_merge(
    capsys: pytest.CaptureFixture[str], plan: str, shards: Path | str, product: Path | str, *flags: str
) -> tuple[int, str]:
    """Run `scripts.merge`; return its exit status and its stderr."""
    try:
        merge_script.main([f"--plan={plan}", f"--shards={shards}", f"--product={product}", *flags])
    except SystemExit as e:
        return int(e.code or 0), capsys.readouterr().err
    return 0, capsys.readouterr().err


def digests(folder: Path | str) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by relative path."""
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
