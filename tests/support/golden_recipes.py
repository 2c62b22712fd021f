"""One golden chip per archive, and its vector at every precision. `tests/data/recipes.json` stores the vectors.

    python -m tests.support.golden_recipes

writes the file. Run it only after raising a RECIPE, never to make a test pass.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from kiln.archives.registry import get_archive
from kiln.engine.job import EmbedOptions, embed_shard
from kiln.errors import ConfigError
from kiln.formats import vectors
from kiln.formats.records import Chip, Dropped, Loaded, Opened, Source
from kiln.model import checkpoint, int8
from kiln.model.identity import PRECISIONS, RECIPE
from tests import DATA
from tests.support import plans, scenes
from tests.support.archives import write_tile
from tests.support.items import BUCKET, COARSE, FILES, write_item

FILE = DATA / "recipes.json"
UNTRAINED = {"seed": 7, "dim": 32, "depth": 2, "heads": 4, "mlp_ratio": 2}
CHIP = 16  # pixels: with few patches, every change is visible in the vector
# Bounds for other CPUs. They are larger than rounding, which is half a unit of float16 for float32, and the difference
# to float32 for the other precisions. They are smaller than the effect of every change in test_recipes.py.
MAX_DEVIATION = {"float32": 0.002, "bfloat16": 0.04, "int8": 0.06}
MIN_COSINE = {"float32": 0.99999, "bfloat16": 0.9998, "int8": 0.9995}
Change = Callable[[Chip], Chip]


def _picture(bands: int, side: int, low: int, high: int, period: int = CHIP) -> NDArray[np.uint16]:
    """Return pixels [bands, side, side]: each band has its own level and a ramp, so every shift changes the pixels."""
    levels = np.linspace(low, high, bands)[np.arange(bands) * 3 % bands][:, None, None]
    y, x = np.mgrid[:side, :side] % period / period
    return np.round(levels * (0.6 + 0.3 * x**2 + 0.5 * y * x)).astype(np.uint16)


def _worldcover(folder: Path) -> Source:
    write_tile(folder, 2021, 10, 45, _picture(4, 240, 300, 4000))
    return _open(
        "worldcover", {"metadata": "as_published", "pixels_per_degree": 240}, archive=str(folder), years=[2021],
        region=[10.21, 45.69, 10.22, 45.7], pixels_per_degree=240,
    )  # fmt: skip


def _naip(folder: Path) -> Source:
    pixels = _picture(4, CHIP, 60, 180).astype(np.uint8)
    key = scenes.write(folder, "nd", 2019, 0, pixels)
    manifest = folder / "manifest.txt"
    scenes.write_manifest(manifest, [key])
    return _open("naip", {}, archive=str(folder), manifest=str(manifest))


def _sentinel2(folder: Path) -> Source:
    planes = _picture(len(FILES), CHIP, 1800, 5000)
    bands = {b: p[::2, ::2] if b in COARSE else p for b, p in zip(FILES, planes, strict=True)}
    item = write_item(folder, side=CHIP, bands=bands, properties={"s2:processing_baseline": "04.00"})
    items = folder / "items.txt"
    items.write_text(f"{item.entry['href']}\n")
    return _open("sentinel2", {"rewrite": [f"{BUCKET}/={folder}/", f"s3://sentinel-cogs/={folder}/"]}, items=str(items))


SOURCES: dict[str, Callable[[Path], Source]] = {"worldcover": _worldcover, "naip": _naip, "sentinel2": _sentinel2}


def _open(name: str, embed_settings: dict[str, Any], **plan_settings: Any) -> Source:
    (shard,) = plans.plan_shards(name, chip_size=CHIP, **plan_settings)
    archive = get_archive(name)
    config = archive.load("config", "Config")(**embed_settings, chip_size=CHIP)
    source: Source = archive.load("source", "open_source")(shard, config)
    return source


class ChangedSource:
    """A source that changes its chips before they are embedded."""

    def __init__(self, source: Source, change: Change) -> None:
        self._source, self._change = source, change
        self.info, self.columns = source.info, source.columns
        self.units, self.check, self.reads, self.provenance = (
            source.units, source.check, source.reads, source.provenance,
        )  # fmt: skip

    def chips(self, loaded: Iterator[Loaded]) -> "Iterator[Chip | Dropped | Opened]":
        """Yield the changed chips."""
        for event in self._source.chips(loaded):
            yield self._change(event) if isinstance(event, Chip) else event


def precisions() -> list[str]:
    """Return the precisions that this machine's CPU supports."""
    try:
        int8.require_int8("cpu")
    except ConfigError:
        return [p for p in PRECISIONS if p != "int8"]
    return list(PRECISIONS)


def embed_golden(
    name: str, precision: str, change: Change | None = None, *, mean_factor: float = 1.0
) -> NDArray[np.float32]:
    """Embed an archive's golden chip with the whole engine and return its vector.

    Args:
        name: The archive.
        precision: Precision of the weights.
        change: Changes the chip before it is embedded.
        mean_factor: Factor of the first band's mean in the normalisation.
    """
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="kiln-golden-") as temporary:
        folder = Path(temporary)
        weights = folder / "weights.safetensors"
        checkpoint.write_untrained(UNTRAINED, precision, weights)  # type: ignore[arg-type]
        source = SOURCES[name](folder / "archive")
        if change:
            source = ChangedSource(source, change)
        if mean_factor != 1.0:
            mean = source.info.sensor.mean
            sensor = replace(source.info.sensor, mean=(mean[0] * mean_factor, *mean[1:]))
            source.info = replace(source.info, sensor=sensor)
        output = folder / "out.parquet"
        embed_shard(
            source, weights=weights, output=str(output), options=EmbedOptions(vector_dtype="float32", threads=1)
        )
        vector = vectors.read(pq.read_table(output))
    torch.set_num_threads(threads)
    assert vector.shape == (1, UNTRAINED["dim"]), f"{name}: expected one chip, got vectors {vector.shape}"
    return vector[0]


def machine() -> dict[str, str]:
    """Return the facts about this machine that the exact bits of a vector depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return {
        "processor": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), ""),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "architecture": platform.machine(),
    }


def digest(vector: NDArray[np.float32]) -> str:
    """Return the sha256 of a vector's bits."""
    return hashlib.sha256(vector.astype("<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class Golden:
    """A stored vector of an archive's golden chip, and the recipes it was computed with."""

    recipe: int
    model_recipe: int
    vector: NDArray[np.float32]
    sha256: str
    machine: dict[str, str]


def read(path: Path = FILE) -> dict[str, dict[str, Golden]]:
    """Return the stored vectors by archive and precision."""
    stored = json.loads(path.read_text())
    return {
        name: {
            precision: Golden(
                entry["recipe"],
                stored["model_recipe"],
                np.array(golden["vector"], np.float16).astype(np.float32),
                golden["sha256"],
                stored["machine"],
            )
            for precision, golden in entry["precisions"].items()
        }
        for name, entry in stored["archives"].items()
    }


def difference(golden: Golden, vector: NDArray[np.float32], precision: str) -> str:
    """Return how a vector differs from the stored one by more than rounding; an empty string if it does not."""
    deviation = float(np.abs(vector - golden.vector).max())
    cosine = float(vector @ golden.vector / np.linalg.norm(vector) / np.linalg.norm(golden.vector))
    if deviation > MAX_DEVIATION[precision] or cosine < MIN_COSINE[precision]:
        return f"deviation {deviation:.2e}, cosine {cosine:.7f}"
    if golden.machine == machine() and digest(vector) != golden.sha256:
        return f"other bits on the same kind of machine, deviation {deviation:.2e}"
    return ""


def check(name: str, precision: str, golden: Golden, vector: NDArray[np.float32], recipe: int, model: int) -> None:
    """Raise AssertionError unless the vector and the recipes equal the stored ones.

    Args:
        name: The archive.
        precision: Precision of the weights.
        golden: The stored vector.
        vector: The current vector.
        recipe: The archive's current RECIPE.
        model: The model's current RECIPE.
    """
    if (recipe, model) != (golden.recipe, golden.model_recipe):
        raise AssertionError(
            f"{name}: expected RECIPE {golden.recipe} and the model's {golden.model_recipe} as in {FILE.name}, got "
            f"{recipe} and {model}. Run `python -m tests.support.golden_recipes`, and commit the file with the change."
        )
    if text := difference(golden, vector, precision):
        raise AssertionError(
            f"{name}, {precision}: the golden chip has another vector ({text}), but RECIPE is unchanged. If vectors "
            f"are meant to change, raise the RECIPE of {name} (kiln/archives/{name}/__init__.py) or of the model "
            "(kiln/model/identity.py) and run `python -m tests.support.golden_recipes`. Otherwise undo the change."
        )


def main() -> None:
    """Compute the golden vectors and write the file."""
    stored: dict[str, Any] = {"machine": machine(), "model_recipe": RECIPE, "untrained": UNTRAINED, "archives": {}}
    for name in SOURCES:
        entry: dict[str, Any] = {"recipe": get_archive(name).recipe, "precisions": {}}
        for precision in precisions():
            vector = embed_golden(name, precision)
            rounded = [float(v) for v in vector.astype(np.float16)]
            entry["precisions"][precision] = {"sha256": digest(vector), "vector": rounded}
        stored["archives"][name] = entry
    FILE.write_text(json.dumps(stored) + "\n")


if __name__ == "__main__":
    main()
