"""A source of scenes that can become checkpoints, a shard of them, and jobs that embed it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest

from kiln.archives.naip import columns as naip
from kiln.engine import pipeline
from kiln.engine.checkpoints import Checkpoints
from kiln.engine.pipeline import Budget
from kiln.errors import SourceError
from kiln.formats import embeddings_file
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Read, Unit
from kiln.model.embedder import EmbedPolicy
from tests.support.chips import make_chip, make_info
from tests.support.engine import Echo

METADATA = {"fingerprint": "f1", "software": {"torch": "1"}, "sources": {"a": 1}}
ESTIMATE = 9  # expected chips of a scene until it is opened
COLUMNS = embeddings_file.schema(4, "float32", naip.COLUMNS, {})
NAN_VALUES = Echo({0: float("nan")}).values
SHARD = {  # units of every kind: a number is a chip of that pixel value (0: not finite), n nodata, c cloud
    "s:a": [1, 2, "n", 3],
    "s:b": ["n", "c", "n"],
    "s:c": [4, 5, 6, 7, 8, 9, "c"],
    "s:d": SourceError("d.tif: unreadable"),
    "s:e": [10],
    "s:f": [],
    "s:g": [11, 0, 12],
    "s:h": ["n", 13, 14, "n"],
}
CHECKPOINTED = ["s:a", "s:b", "s:c", "s:e", "s:f", "s:h"]  # the units that are complete and without failed chips


@dataclass
class Scenes:
    """A source of scenes with one read each. A scene that is an exception is raised by its read."""

    scenes: dict[str, list | Exception]
    version: str = "1"
    unversioned: tuple[str, ...] = ()
    read: list[str] = field(default_factory=list)  # units in the order of their reads
    info = make_info()
    columns = naip.COLUMNS

    def units(self) -> list[Unit]:
        return [
            Unit(u, ESTIMATE, f"s3://b/{u}", "e", False, "" if u in self.unversioned else self.version)
            for u in self.scenes
        ]

    def check(self) -> None:
        pass

    def reads(self) -> Iterator[Read]:
        for u in self.scenes:
            yield Read(100, lambda u=u: self._load(u), u, u)

    def _load(self, u: str) -> list:
        self.read.append(u)
        values = self.scenes[u]
        if isinstance(values, Exception):
            raise values
        return values

    def chips(self, loaded: Iterator[Loaded]) -> Iterator[Chip | Dropped | Opened]:
        for piece in loaded:
            u = piece.read.unit_id
            if piece.error is not None:
                yield Dropped(u, "failed", ESTIMATE, str(piece.error))
                continue
            yield Opened(u, len(piece.value), f"etag of {u}", (f"a note; of {u}", "an other"))
            if not piece.value:
                yield Dropped(u, "nodata", 0, "smaller than a chip")
            for n, value in enumerate(piece.value):
                yield self.chip(u, n, value)

    def chip(self, u: str, n: int, value: int | str) -> Chip | Dropped:
        if isinstance(value, str):
            kind = {"n": "nodata", "c": "cloud"}[value]
            return Dropped(u, kind, 1, f"too much {kind}")
        chip = make_chip(value, u, chip_id=f"{u}:{n}", extra={"state": "xyz"[value % 3], "year": 2020})
        return chip if value % 4 else replace(chip, datetime=None, cloud_fraction=0.5)

    def provenance(self) -> dict:
        return {f"s3://b/{u}": {"size": n} for n, u in enumerate(self.scenes)}


@contextmanager
def row_groups(rows: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings_file.ShardWriter.__init__, "__defaults__", (rows,))
        yield


def embed_scenes(
    source, path, checkpoint_folder=None, *, encoder=None, batch=4, allowed=1.0, dim=4, about=METADATA, gsd=10.0
):
    """Embed a source and return the bytes of the shard's file and its ledger."""
    path.parent.mkdir(parents=True, exist_ok=True)
    outcome = pipeline.embed(
        source,
        lambda: encoder or Echo(NAN_VALUES),
        dim,
        path,
        about,
        policy=EmbedPolicy("zeros", gsd),
        budget=Budget(batch, 2, 1000),
        max_failed_fraction=allowed,
        checkpoints=Checkpoints.for_metadata(str(checkpoint_folder), about) if checkpoint_folder else None,
    )
    return path.read_bytes(), outcome.ledger.to_pylist()


def checkpoint_names(folder) -> dict[str, str]:
    """Return the checkpoint files of a folder by the unit of their name."""
    names = sorted(p.name for p in folder.iterdir()) if folder.exists() else []
    return {re.sub(r"-[0-9a-f]{12}\.parquet$", "", n).replace("-", ":"): n for n in names}


def delete_checkpoints_except(folder, units) -> None:
    """Delete all other checkpoints, as if the job had died when these units were finished."""
    for u, name in checkpoint_names(folder).items():
        if u not in units:
            (folder / name).unlink()
