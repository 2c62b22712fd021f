"""Measured rates of the encoder on a machine, as `kiln tune` writes and `snakemake plan` reads them."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from kiln.errors import ConfigError
from kiln.io import storage
from kiln.io.machine import cpu_name, gpu_name

PUBLISHED = {"dim": 1024, "depth": 24, "heads": 16, "mlp_ratio": 4}  # sizes of Clay v1.5
FOLDER = "tuning"  # in the working folder; a file for each kind of machine


@dataclass(frozen=True)
class EncoderSetting:
    """What decides the rate of an encoder, besides the machine.

    Attributes:
        dim: Dimensions of a vector.
        depth: Number of blocks.
        heads: Attention heads.
        mlp: Width of the MLP.
        precision: Precision of weights and arithmetic.
        device: `cpu` or `cuda`.
        threads: Threads of the encoder; on a GPU they do not matter, and are 0.
        batch: Chips encoded together.
        chip_px: Side of a chip in pixels.
    """

    dim: int
    depth: int
    heads: int
    mlp: int
    precision: str
    device: str
    threads: int
    batch: int
    chip_px: int

    @classmethod
    def of(
        cls, untrained: Mapping[str, int] | None, *, precision: str, device: str, threads: int, batch: int, chip_px: int
    ) -> Self:
        """Return the setting of a run: the published encoder, or an untrained one of the config's sizes."""
        sizes = untrained or PUBLISHED
        return cls(
            dim=sizes["dim"],
            depth=sizes["depth"],
            heads=sizes["heads"],
            mlp=sizes["dim"] * sizes["mlp_ratio"],
            precision=precision,
            device=device.partition(":")[0],
            threads=threads if device == "cpu" else 0,
            batch=batch,
            chip_px=chip_px,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the encoder, by field of `kiln.model.clay.Geometry`."""
        sizes = {"dim": self.dim, "depth": self.depth, "heads": self.heads, "mlp": self.mlp}
        return {**sizes, "dim_head": self.dim // self.heads}


def tuning_file(device: str, folder: str = FOLDER) -> Path:
    """Return the file of this kind of machine: its processor and number of cores, or its GPU."""
    name = gpu_name() if device != "cpu" else f"{cpu_name()} {os.cpu_count()} cores"
    return Path(folder) / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-') or 'unknown'}.json"


def write_rates(path: Path, rates: Mapping[EncoderSetting, float]) -> None:
    """Add rates in chips per second to a file. Earlier rates of the same settings are replaced."""
    merged = {**(read_rates(path) if path.exists() else {}), **rates}
    entries = [{**asdict(setting), "chips_per_second": rate} for setting, rate in merged.items()]
    storage.write_bytes(str(path), (json.dumps(entries, indent=1) + "\n").encode())


def read_rates(path: Path) -> dict[EncoderSetting, float]:
    """Return the rates in a file, in chips per second. Raises ConfigError for another file."""
    try:
        entries: Sequence[dict[str, Any]] = json.loads(path.read_text())
        return {EncoderSetting(**entry): float(rate) for entry in entries for rate in [entry.pop("chips_per_second")]}
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise ConfigError(f"{path}: expected rates of `kiln tune`, got another file ({e}). Delete it.") from e
