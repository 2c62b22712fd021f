"""Shards to measure with: of each dataset a scene or tile in its archive's layout and compression, and its plan."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kiln.archives.naip.source import NaipSource
from kiln.archives.registry import get_archive
from kiln.archives.sentinel2.source import Sentinel2Source
from kiln.archives.worldcover import plan as plan_worldcover
from kiln.archives.worldcover.lattice import Column, Lattice
from kiln.archives.worldcover.source import Tile, WorldCoverSource
from kiln.formats.records import Source
from kiln.io import storage
from kiln.model import clay
from kiln.model import weights as encoders
from kiln.sample.files import write_cog
from scripts import embed_naip, embed_sentinel2, embed_worldcover
from tests.support import items
from tests.support.chips import make_info

CHIP = 256
BEFORE = {"s2:processing_baseline": "02.14"}  # the offset
SIZES = {  # of encoders with random weights
    "tiny": clay.Geometry(dim=64, depth=1, heads=2, dim_head=32, mlp=64, patch=32),  # faster than reading
    "middle": clay.Geometry(dim=384, depth=3, heads=6, dim_head=64, mlp=1536),  # slower than reading, on CPUs too
    "full": clay.Geometry(),
}
NAIP_KEY = "nd/2019/100cm/rgbir_cog/47099/m_47099{:02d}_se_14_1_20190904.tif"


@dataclass(frozen=True)
class Workload:
    """One shard of a dataset: its plan's line, what reads it from its folder or a copy's URI, and its script."""

    dataset: str
    folder: Path
    line: dict
    source_at: Callable[[str], Source]
    main: Callable[[list[str]], None]
    flags: tuple[str, ...] = ()

    def source(self, root: str | None = None) -> Source:
        """What reads the shard, from its folder or from a copy of it elsewhere."""
        source = self.source_at(root or str(self.folder))
        source.info = make_info(sensor=get_archive(self.dataset).sensor)
        return source

    def elsewhere(self, root: str) -> "Workload":
        """The same shard, its archive copied to another root."""
        line = json.loads(json.dumps(self.line).replace(str(self.folder), root))
        for tile in line.get("tiles", []):  # name, URI, size, ETag
            there = storage.stat(tile[1])
            tile[2:] = [there.size, there.etag]  # type: ignore[union-attr]
        return replace(self, line=line, flags=tuple(f.replace(str(self.folder), root) for f in self.flags))

    def embed(self, weights: Path, output: Path, *more: str) -> Path:
        """Run the script; returns the embeddings file."""
        self.main(self.arguments(weights, output, *more))
        return output / f"{self.line['shard']}.parquet"

    def arguments(self, weights: Path, output: Path, *more: str) -> list[str]:
        """What the script is told; writes the plan that it is told of."""
        plan = self.folder / "plan.jsonl"
        plan.write_text(json.dumps(self.line) + "\n")
        output.mkdir(parents=True, exist_ok=True)
        common = ["--units", plan, "--index", "0", "--folder", output, "--weights", weights, "--overwrite"]
        return [*map(str, common), *self.flags, *more]


def picture(bands: int, side: int, dtype: type, high: int, seed: int = 1) -> np.ndarray:
    """[bands, side, side] from 1 to `high`: smooth land with grain, so that it compresses about as scenes do (half)."""
    rng = np.random.default_rng(seed)
    fields = rng.random((bands, -(-side // 32), -(-side // 32)), np.float32)
    land = fields.repeat(32, 1).repeat(32, 2)[:, :side, :side]
    grain = rng.normal(0, 0.02, land.shape).astype(np.float32)
    return np.clip(1 + (land + grain) * (high - 1) * 0.9, 1, high).astype(dtype)


def make_naip(folder: Path, side: int, units: int = 1) -> Workload:
    """Scenes of `side` px of 1 m, alike but for their names."""
    keys = [NAIP_KEY.format(n + 1) for n in range(units)]
    pixels = picture(4, side, np.uint8, 255)
    for key in keys:
        write_cog(folder / key, pixels, "EPSG:26914", 500_000, 5_209_000, 1.0)
    line = {"dataset": "naip", "shard": "bench", "partition": "nd-2019", "units": keys, "archive": str(folder)}
    line |= {"expected": units * (side // CHIP) ** 2, "bytes": units * 4 * side * side}

    def source(root: str) -> NaipSource:
        return NaipSource(keys, archive=root, chip=CHIP, max_nodata=0.05)

    return Workload("naip", folder, line, source, embed_naip.main, ("--chip-size", str(CHIP)))


def make_sentinel2(folder: Path, side: int, units: int = 1) -> Workload:
    """Items of `side` px of 10 m, ten bands and classes, in blocks of 512 px as the archive's (1024 in full)."""
    bands = {}
    for n, band in enumerate(items.FILES):
        bands[band] = picture(1, side // 2 if band in items.COARSE else side, np.uint16, 9000, n)[0]
    profile = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "predictor": 2}
    made = [
        items.write_item(
            folder, f"S2A_29RKH_202002{19 + n}_0_L2A", side=side, bands=bands, properties=BEFORE, **profile
        )
        for n in range(units)
    ]
    names = [m.entry["id"] for m in made]
    line = {"dataset": "sentinel2", "shard": "bench", "partition": "29R-2020-02", "units": names}
    line |= {"items": {m.entry["id"]: m.entry["href"] for m in made}}
    line |= {"expected": units * (side // CHIP) ** 2, "bytes": units * 13 * side * side}

    def source(root: str) -> Sentinel2Source:
        rewrite = [(f"{items.BUCKET}/", f"{root}/")]
        return Sentinel2Source([m.entry for m in made], chip=CHIP, max_nodata=0.05, max_cloud=0.5, rewrite=rewrite)

    flags = ("--chip-size", str(CHIP), "--rewrite", f"{items.BUCKET}/={folder}/")
    return Workload("sentinel2", folder, line, source, embed_sentinel2.main, flags)


def make_worldcover(folder: Path, side: int, units: int = 1, columns: int = 1000) -> Workload:
    """A tile of `side` px a degree, whatever `units`; side divides 12000. The shard is so many of its columns of chips.

    Fewer than there are come from its middle, where they are whole.
    """
    tile = picture(4, side, np.uint16, 9000)
    path = folder / "2021/N43/ESA_WorldCover_10m_2021_v200_N43W097_S2RGBNIR.tif"
    write_cog(path, tile, "EPSG:4326", -97, 44, 1 / side, nodata=0)
    plan = folder / "made.jsonl"
    told = ["--archive", folder, "--year", "2021", "--region=-97,43,-96,44", "--chip-size", CHIP]
    told += ["--pixels-per-degree", side, "--columns-per-shard", columns, "--output", plan]
    plan_worldcover.main(list(map(str, told)))
    shards = plan.read_text().splitlines()
    line = json.loads(shards[len(shards) // 2])

    def source(root: str) -> WorldCoverSource:
        uri = storage.join(root, str(path.relative_to(folder)))
        tiles = [Tile("N43W097", uri, path.stat().st_size, storage.stat(uri).etag)]  # type: ignore[union-attr]
        lattice, strips = Lattice(line["chip"], line["ppd"]), [Column(*c) for c in line["columns"]]
        return WorldCoverSource(lattice, 2021, strips, tiles, root=root, max_nodata=0.05, encode=line["encode"])

    return Workload("worldcover", folder, line, source, embed_worldcover.main)


MAKERS = {"naip": make_naip, "sentinel2": make_sentinel2, "worldcover": make_worldcover}


def write_weights(folder: Path, size: str, precision: str = "float32") -> Path:
    """Random weights of one of SIZES, as `encoder_weights` writes them."""
    path = folder / f"{size}-{precision}.safetensors"
    encoder = encoders.in_precision(encoders.untrained_encoder(SIZES[size], 0), precision)  # type: ignore[arg-type]
    about = {"sha256": "0" * 64, "checkpoint": "untrained", "precision": precision, "untrained": True}
    encoders.save_encoder(encoder, path, about)
    return path
