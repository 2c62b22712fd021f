"""A finished run without Snakemake or an encoder: a file of every kind that a run holds."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from kiln.archives.worldcover.lattice import Column
from kiln.engine.checkpoints import Checkpoints
from kiln.explorer.build.builder import build_index
from kiln.explorer.build.products import Select
from kiln.explorer.database import ExplorerDatabase
from kiln.explorer.matrix_cache import open_matrix
from kiln.formats import plan_file
from kiln.formats.fingerprint import product_digest
from kiln.formats.job_record import write_job_record
from kiln.formats.ledger import LedgerEntry
from kiln.formats.records import Unit
from kiln.io import storage
from kiln.model.clay import Geometry
from kiln.model.weights import save_encoder, untrained_encoder
from kiln.product.merge import merge
from kiln.product.record import ProductRecord, write_record
from kiln.report.status.command import RunCommand
from kiln.report.verify.run import Verification, verify
from scripts import coverage
from tests.support.job_records import make_job_record
from tests.support.products import write_shards

FOLDER = "worldcover-f1f1f1f1"  # named after the fingerprint of `shard_metadata`
YEARS = (2020, 2021)
COLUMNS = [Column(k, 0, 6) for k in range(6)]


@dataclass(frozen=True)
class VerifiedRun:
    """A run on a disk.

    Attributes:
        top: The folder above `results/`.
    """

    top: Path

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.top / "results/tiny"

    @property
    def folder(self) -> Path:
        """Folder of its dataset."""
        return self.run / FOLDER

    @property
    def cache(self) -> Path:
        """The explorer's cache."""
        return self.top / "cache"

    def files(self) -> list[Path]:
        """Return all files but locks."""
        return sorted(p for p in self.top.rglob("*") if p.is_file() and p.name != "lock")

    def verify(self) -> Verification:
        """Verify the run."""
        return verify(self.run, cache=self.cache)

    def merge(self, year: int) -> str:
        """Merge a year as the rule does, write its record and return the record's path."""
        names = plan_file.read_names(str(self.folder / "plan-1a2b3c4d.json"))[str(year)]
        product = self.folder / f"products/{year}/{product_digest(names, [])}"
        shards = str(self.folder / f"shards/{year}")
        merged: ProductRecord = merge(names, shards, shards, str(product))
        write_record(f"{product}.json", merged)
        return f"{product}.json"

    def index(self, records: list[str]) -> None:
        """Build the database as the rule does."""
        products = [record.removesuffix(".json") for record in records]
        record = str(self.run / "index/0123456789abcdef.json")
        build_index(records, products, str(self.run / "explorer"), record, select=Select())

    def report(self, records: list[str]) -> None:
        """Draw map and pages and write the catalog, as the rule does."""
        pictures = self.run / "pictures/0123456789abcdef"
        flags = {
            "--map": pictures / "coverage.png",
            "--ledger": pictures / "ledger.html",
            "--run-page": pictures / "run.html",
            "--run": self.run,
            "--runs": self.run / "runs",
            "--datasets": FOLDER,
            "--price-per-hour": "1",
        }
        coverage.main(["--records", *records, *(str(word) for pair in flags.items() for word in pair)])


def write_run(top: Path) -> VerifiedRun:
    """Write a run below a folder."""
    run = VerifiedRun(top)
    lines: list[plan_file.ShardPlan] = []
    for year in YEARS:
        plan, _, _ = write_shards(run.folder, year, COLUMNS, per_shard=3)
        lines += plan_file.read_plan(plan)
        Path(plan).unlink()
    plan = run.folder / "plan-1a2b3c4d.jsonl.gz"
    plan_file.write_plan(lines, str(plan), str(plan).replace(".jsonl.gz", ".json"))
    for line in lines:
        job = make_job_record(partition=line.partition, shard=line.name)
        write_job_record(str(run.run / f"runs/jobs/{FOLDER}/{line.partition}/{line.name}.json"), job)
    records = [run.merge(year) for year in YEARS]
    run.index(records)
    run.report(records)
    RunCommand(config=["run=tiny"]).write(str(run.run))
    geometry = Geometry(dim=16, depth=1, heads=1, dim_head=16, mlp=16, patch=8, wave_dim=8, wave_tokens=2, wave_mlp=8)
    weights = top / "results/models/0a1b2c3d-float32.safetensors"
    weights.parent.mkdir()
    save_encoder(untrained_encoder(geometry, 1), weights, {"sha256": "0a", "precision": "float32"})
    _write_checkpoint(run, lines[0].name)
    open_matrix(ExplorerDatabase(str(run.run / "explorer")), run.cache)
    texts = PngInfo()
    for name in ("origin", "why", "stands-in"):
        texts.add_text(name, "source")
    (run.cache / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise, "RGB").save(run.cache / "pictures/0a.png", pnginfo=texts)
    return run


def _write_checkpoint(run: VerifiedRun, shard: str) -> None:
    from kiln.formats.parquet import read_table

    rows = read_table(run.folder / f"shards/2020/{shard}.parquet")
    with Checkpoints(str(run.top / f"checkpoints/tiny/{FOLDER}/2020"), "0a") as checkpoints:
        unit = Unit("worldcover:2020:1", len(rows), "s3://b/a.tif", "e")
        checkpoints.write(rows, LedgerEntry(unit, embedded=len(rows)))


def damaged(data: bytes, seed: Any) -> bytes:
    """Return a copy of a file that is cut, or has a stretch of noise or zeros, or a flipped bit."""
    rng, copy = random.Random(str(seed)), bytearray(data)
    start = rng.randrange(len(copy))
    kind = rng.choice(("cut", "noise", "zeros", "bit"))
    if kind == "cut":
        return bytes(copy[:start])
    if kind == "bit":
        copy[start] ^= 1 << rng.randrange(8)
    else:
        length = min(rng.randrange(1, 200), len(copy) - start)
        copy[start : start + length] = bytes(length) if kind == "zeros" else rng.randbytes(length)
    return bytes(copy)


def upload(run: VerifiedRun, bucket: str) -> str:
    """Copy a run's files to a bucket; return the run's address there."""
    for path in run.files():
        if run.cache not in path.parents:
            storage.write_bytes(f"{bucket}/{path.relative_to(run.top)}", path.read_bytes())
    return f"{bucket}/results/tiny"
