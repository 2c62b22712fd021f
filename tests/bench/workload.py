"""Shards for the benches: scenes, items or a tile of each dataset, in the archive's layout and compression."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kiln.archives.registry import get_archive
from kiln.formats.fingerprint import shard_name
from kiln.formats.plan_file import ShardPlan, write_plan
from kiln.formats.records import Source
from kiln.io import storage
from kiln.model import clay
from kiln.model import weights as encoders
from kiln.sample.files import write_cog
from scripts import embed
from tests.support import items, plans

CHIP = 256
WITHOUT_OFFSET = {"s2:processing_baseline": "02.14"}  # a baseline before 04.00, whose pixels have no offset
SIZES = {  # sizes of encoders with random weights
    "tiny": clay.Geometry(dim=64, depth=1, heads=2, dim_head=32, mlp=64, patch=32),  # faster than reading
    "middle": clay.Geometry(dim=384, depth=3, heads=6, dim_head=64, mlp=1536),  # slower than reading, on CPUs too
    "full": clay.Geometry(),
}
NAIP_KEY = "nd/2019/100cm/rgbir_cog/47099/m_47099{:02d}_se_14_1_20190904.tif"


@dataclass(frozen=True)
class Workload:
    """One shard of an archive: the folder of its files, its plan, and the required keys of its config section."""

    folder: Path
    shard: ShardPlan
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The archive's name."""
        return self.shard.dataset

    def source(self, root: str | None = None) -> Source:
        """Return the source of the shard. `root` is the URI of a copy of its folder."""
        load = self.copied_to(root) if root else self
        archive = get_archive(self.dataset)
        config = archive.load("config", "Config")(**load.settings, chip_size=load.shard.chip_size)
        source: Source = archive.load("source", "open_source")(load.shard, config)
        return source

    def copied_to(self, root: str) -> "Workload":
        """Return the same shard, with its archive in a copy at another root."""
        values = json.loads(json.dumps([asdict(self.shard), self.settings]).replace(str(self.folder), root))
        for tile in values[0]["details"].get("tiles", []):  # name, URI, size, ETag
            stat = storage.stat(tile[1])
            tile[2:] = [stat.size, stat.etag]  # type: ignore[union-attr]
        shard = ShardPlan(**values[0] | {"units": tuple(values[0]["units"])})
        return replace(self, shard=shard, settings=values[1])

    def embed(self, weights: Path, output: Path, *more: str) -> Path:
        """Run `scripts.embed` and return the embeddings file."""
        embed.main(self.arguments(weights, output, *more))
        return output / f"{self.shard.name}.parquet"

    def arguments(self, weights: Path, output: Path, *more: str) -> list[str]:
        """Return the arguments of `scripts.embed`, and write the plan that they name."""
        plan = self.folder / "plan.jsonl.gz"
        write_plan([self.shard], str(plan))
        output.mkdir(parents=True, exist_ok=True)
        common = [self.dataset, "--units", plan, "--index", "0", "--folder", output, "--weights", weights]
        flags = []
        for key, value in self.settings.items():
            flags += [f"--{key.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
        return [*map(str, common), "--overwrite", *map(str, flags), *more]


def picture(bands: int, side: int, dtype: type, high: int, seed: int = 1) -> np.ndarray:
    """Return pixels [bands, side, side] from 1 to `high`: smooth land with noise, which compresses to half."""
    rng = np.random.default_rng(seed)
    fields = rng.random((bands, -(-side // 32), -(-side // 32)), np.float32)
    land = fields.repeat(32, 1).repeat(32, 2)[:, :side, :side]
    noise = rng.normal(0, 0.02, land.shape).astype(np.float32)
    return np.clip(1 + (land + noise) * (high - 1) * 0.9, 1, high).astype(dtype)


def make_naip(folder: Path, side: int, units: int = 1) -> Workload:
    """Write scenes of `side` px of 1 m that differ only in their names."""
    keys = [NAIP_KEY.format(n + 1) for n in range(units)]
    pixels = picture(4, side, np.uint8, 255)
    for key in keys:
        write_cog(folder / key, pixels, "EPSG:26914", 500_000, 5_209_000, 1.0)
    expected, nbytes = units * (side // CHIP) ** 2, units * 4 * side * side
    shard = ShardPlan("naip", "nd-2019", shard_name("bench", keys), tuple(keys), CHIP, expected, nbytes, str(folder))
    return Workload(folder, shard)


def make_sentinel2(folder: Path, side: int, units: int = 1) -> Workload:
    """Write items of `side` px of 10 m with ten bands and the SCL, in blocks of 512 px (the archive: 1024)."""
    bands = {}
    for n, band in enumerate(items.FILES):
        bands[band] = picture(1, side // 2 if band in items.COARSE else side, np.uint16, 9000, n)[0]
    profile = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
    written = [
        items.write_item(
            folder, f"S2A_29RKH_202002{19 + n}_0_L2A", side=side, bands=bands, properties=WITHOUT_OFFSET, **profile
        )
        for n in range(units)
    ]
    addresses = {m.entry["id"]: m.entry["href"] for m in written}
    ids, expected, nbytes = tuple(addresses), units * (side // CHIP) ** 2, units * 13 * side * side
    shard = ShardPlan(
        "sentinel2",
        "29R-2020-02",
        shard_name("bench", ids),
        ids,
        CHIP,
        expected,
        nbytes,
        str(folder),
        {"items": addresses},
    )
    return Workload(folder, shard, {"rewrite": [f"{items.BUCKET}/={folder}/"]})


def make_worldcover(folder: Path, side: int, units: int = 1, columns: int = 1000) -> Workload:
    """Write one tile of `side` px per degree; `side` divides 12000. The shard has up to `columns` columns of chips.

    If the tile has more columns, the shard is in its middle, where columns are complete. `units` is ignored.
    """
    tile = picture(4, side, np.uint16, 9000)
    path = folder / "2021/N43/ESA_WorldCover_10m_2021_v200_N43W097_S2RGBNIR.tif"
    write_cog(path, tile, "EPSG:4326", -97, 44, 1 / side, nodata=0)
    settings = {"archive": str(folder), "years": [2021], "region": [-97, 43, -96, 44], "chip_size": CHIP}
    shards = plans.plan_shards("worldcover", **settings, pixels_per_degree=side, columns_per_shard=columns)
    return Workload(folder, shards[len(shards) // 2], {"pixels_per_degree": side})


MAKERS = {"naip": make_naip, "sentinel2": make_sentinel2, "worldcover": make_worldcover}


def write_weights(folder: Path, size: str, precision: str = "float32") -> Path:
    """Write random weights of one of SIZES, as the rule `encoder_weights` does."""
    path = folder / f"{size}-{precision}.safetensors"
    encoder = encoders.in_precision(encoders.untrained_encoder(SIZES[size], 0), precision)  # type: ignore[arg-type]
    about = {"sha256": "0" * 64, "checkpoint": "untrained", "precision": precision, "untrained": True}
    encoders.save_encoder(encoder, path, about)
    return path
