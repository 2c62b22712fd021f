"""The kinds of damaged inputs: how each is made, damaged and read."""

import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import rasterio
import torch

from kiln.archives.naip.config import Config as NaipConfig
from kiln.archives.naip.plan import plan_shards as plan_naip
from kiln.archives.worldcover.config import Config as WorldCoverConfig
from kiln.archives.worldcover.lattice import Column, Lattice, region_columns, unit_id
from kiln.archives.worldcover.source import open_source
from kiln.formats.fingerprint import digest, shard_name
from kiln.formats.plan_file import ShardPlan, read_plan, write_plan
from kiln.formats.records import Chip, Dropped
from kiln.io import storage
from kiln.model import checkpoint, weights
from kiln.product.read import read_product
from tests.conftest import UNTRAINED
from tests.fuzz.mutations import WRONG_VALUES, as_text, damage_bytes, damage_json
from tests.fuzz.runner import Kind, Result
from tests.support import (
    checkpoints,
    golden,
    items,
    naip_scenes,
    products,
    sentinel2_scenes,
    worldcover_source,
)
from tests.support.archives import random_pixels, write_tile

LATTICE = Lattice(16, 48)
DEGREE = [10, 45, 11, 46]
COLUMNS = [Column(k, 0, 4) for k in range(8)]


# ---------------------------------------------------------------------------------------------- rasters and items


def digest_of(*values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def result_of_events(events: Iterable[Any]) -> Result:
    """Return the digest of all chips and drops of a source; it failed if the ledger has a failed row."""
    all_events = list(events)
    facts = [naip_scenes.comparable(e) if isinstance(e, Chip) else repr(e) for e in all_events]
    return Result(digest_of(facts), any(isinstance(e, Dropped) and e.kind == "failed" for e in all_events))


def make_naip(folder: Path) -> None:
    naip_scenes.write_scene(
        folder, naip_scenes.KEY, naip_scenes.scene_pixels(), tiled=True, blockxsize=16, blockysize=16
    )


def read_naip(folder: Path) -> Result:
    return result_of_events(naip_scenes.read_events(naip_scenes.make_source(folder, max_nodata=1.0)))


def make_worldcover(folder: Path) -> None:
    write_tile(folder, 2021, 10, 45, random_pixels(48, 1), tiled=True, blockxsize=16, blockysize=16, compress="deflate")


def read_worldcover(folder: Path) -> Result:
    source = worldcover_source.make_source(folder, LATTICE, region_columns(LATTICE, DEGREE))
    source.check()
    return result_of_events(worldcover_source.read_events(source))


def make_sentinel2(folder: Path) -> None:
    items.write_item(folder, side=32, compress="deflate")


def read_sentinel2(folder: Path) -> Result:
    (path,) = folder.rglob("*.json")
    key = path.relative_to(folder)
    entry = {"id": items.NAME, "href": f"{items.BUCKET}/{key}"}
    return result_of_events(naip_scenes.read_events(sentinel2_scenes.make_source(folder, entry, max_nodata=1.0)))


def damage_item(rng: Random, folder: Path) -> None:
    (path,) = folder.rglob("*.json")
    data = path.read_bytes()
    path.write_bytes(damage_json(rng, json.loads(data)) if rng.random() < 0.7 else damage_bytes(rng, data))


def damage_one(pattern: str) -> Callable[[Random, Path], None]:
    """Return a function that damages the bytes of one of the files that fit a pattern."""

    def damage(rng: Random, folder: Path) -> None:
        path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.match(pattern)))
        path.write_bytes(damage_bytes(rng, path.read_bytes()))

    return damage


def is_rot_without_checksum(sound: Path, damaged: Path) -> bool:
    """Return whether nothing but pixels or the place of a GeoTIFF is damaged, of which it has no checksum."""

    def header(path: Path) -> Any:
        with rasterio.open(path) as file:
            return {**file.profile, "transform": None}, file.tags()

    return all(header(path) == header(sound / path.relative_to(damaged)) for path in damaged.rglob("*.tif"))


# ---------------------------------------------------------------------------------------------- manifests and plans


def make_manifests(folder: Path) -> None:
    keys = [
        f"nd/2019/100cm/rgbir_cog/47099/m_47099{n:02d}_{q}_14_1_20190904.tif"
        for n in range(1, 65)
        for q in ("ne", "sw")
    ]
    text = "".join(f"{key}\n" for key in keys).encode()
    (folder / "manifest.txt").write_bytes(text)
    (folder / "manifest.txt.gz").write_bytes(gzip.compress(text, mtime=0))
    with zipfile.ZipFile(folder / "manifest.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.txt", text)


def read_manifests(folder: Path) -> Result:
    plans = []
    for path in sorted(folder.iterdir()):
        config = NaipConfig(manifest=str(path), archive=str(folder), scenes_per_shard=20, chip_size=256)
        plans.append([(s.name, s.units, s.expected) for s in plan_naip(config)])
    return Result(digest_of(plans))


def is_plain_text(sound: Path, damaged: Path) -> bool:
    """Return whether the damaged manifest is the plain one, which has no checksum."""
    return (sound / "manifest.txt").read_bytes() != (damaged / "manifest.txt").read_bytes()


def make_plan(folder: Path) -> None:
    write_plan(list(_plan_shards()), str(folder / "plan.gz"), str(folder / "plan.json"))


def _plan_shards() -> Iterable[ShardPlan]:
    for first in (0, 3, 6):
        columns = [Column(first + k, 5, 4) for k in range(3)]
        units = tuple(unit_id(LATTICE, 2021, c) for c in columns)
        details = {
            "year": 2021,
            "columns": [[c.col, c.row, c.rows] for c in columns],
            "tiles": [["N49W125", "s3://b/t.tif", 1000, "e1"], ["N49W124", "s3://b/u.tif", 900, "e2"]],
        }
        yield ShardPlan("worldcover", "2021", shard_name(f"x{first}", units), units, 16, 12, 1900, "s3://b", details)


def damage_plan(rng: Random, folder: Path) -> None:
    """Damage the file's bytes, or a line: as it is, or without its digest, as lines of older plans are."""
    path = folder / "plan.gz"
    way = rng.random()
    if way < 0.3:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
        return
    lines = gzip.decompress(path.read_bytes()).splitlines()
    n = rng.randrange(len(lines))
    line = json.loads(lines[n])
    if way < 0.6:
        lines[n] = damage_json(rng, line)
    else:
        del line["digest"]
        key = rng.choice(list(line))
        if key == "units" and rng.random() < 0.5:
            line["units"].pop(rng.randrange(3))
        elif rng.random() < 0.3:
            del line[key]
        else:
            wrong = [v for v in WRONG_VALUES if type(v) is not type(line[key]) or key in ("name", "units", "details")]
            line[key] = rng.choice(wrong)
        lines[n] = as_text(line).encode()
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n", mtime=0))


def read_plans(folder: Path) -> Result:
    config = WorldCoverConfig(chip_size=16, pixels_per_degree=48)
    shards = list(read_plan(str(folder / "plan.gz")))
    return Result(digest_of([(s, open_source(s, config).units()) for s in shards]))


# ---------------------------------------------------------------------------------------------- the model


def make_weights(folder: Path) -> None:
    checkpoint.write_untrained(UNTRAINED, "float32", folder / "weights.safetensors")


def digest_of_encoder(path: Path) -> Result:
    state = weights.load_encoder(path).state_dict()
    return Result(digest_of([(name, values.shape, values.numpy().tobytes()) for name, values in state.items()]))


def read_weights(folder: Path) -> Result:
    return digest_of_encoder(folder / "weights.safetensors")


def make_checkpoint(folder: Path) -> None:
    torch.save(golden.checkpoint(), folder / "clay.ckpt")
    (folder / "sha256").write_text(storage.sha256(folder / "clay.ckpt"))


def damage_checkpoint(rng: Random, folder: Path) -> None:
    """Damage the file's bytes, or write another checkpoint, with the digest that belongs to it."""
    path = folder / "clay.ckpt"
    if rng.random() < 0.4:
        path.write_bytes(damage_bytes(rng, path.read_bytes()))
        return
    values = golden.checkpoint()
    state = values["state_dict"]
    names = sorted(name for name in state if name.startswith(weights.PREFIX))
    name = rng.choice(names)
    tensor = state[name]
    changes: list[Any] = [
        lambda: state.pop(name),
        lambda: state.update({name: rng.choice(("text", 3, None, [1.0], {"a": 1}))}),
        lambda: state.update({name: tensor.double() if rng.random() < 0.5 else tensor.to(torch.int64)}),
        lambda: state.update({name: tensor.to(torch.complex64)}),
        lambda: state.update({name: tensor[..., None]}),
        lambda: state.update({name: tensor.flatten()[:1]}),
        lambda: state.update({name: torch.empty(0)}),
        lambda: state.update({name: tensor.to_sparse()}),
        lambda: state.update({name: torch.empty(tensor.shape, device="meta")}),
        lambda: state.update({f"{name}.more": tensor}),
        lambda: state.update({5: tensor}),
        lambda: state.update({f"{weights.PREFIX}transformer.layers.99999999999.x": tensor}),
        lambda: values.update(state_dict=rng.choice(([1], "text", {}, None))),
        lambda: values.update(hyper_parameters=rng.choice(([1], "text", 5, {"encoder_heads": "x"}))),
        lambda: values.update(hyper_parameters={"encoder_dim_head": rng.choice((0, -1, 1.5, 10**30, None))}),
        lambda: values.update(hyper_parameters={"model_size": rng.choice(([1], None, "huge"))}),
    ]
    rng.choice(changes)()
    torch.save(rng.choice((values, values, values, values, list(values), state)), path)
    (folder / "sha256").write_text(storage.sha256(path))


def read_checkpoint(folder: Path) -> Result:
    """Make the weights of a run from the checkpoint and load them."""
    path, output = folder / "clay.ckpt", folder / "weights.safetensors"
    try:
        weights.load_encoder(path)  # as a user may without a digest; nothing of it is returned
    finally:
        sha256 = (folder / "sha256").read_text()
        checkpoint.make_weights(str(path), str(output), sha256=sha256, scratch=folder)
    return digest_of_encoder(output)


# ---------------------------------------------------------------------------------------------- shards and products


def make_shards(folder: Path) -> None:
    products.write_shards(folder, columns=COLUMNS, per_shard=4)


def read_shards(folder: Path) -> Result:
    """Merge the shards, and return the digest of the product's rows and ledger."""
    names = sorted({p.name.partition(".")[0] for p in (folder / "shards" / "2021").iterdir()})
    record = products.merge_shards(names, folder / "shards" / "2021", folder / "product")
    product = products.MergedProduct("", record, str(folder / "product"), "")
    return Result(digest_of(product.rows().to_pylist(), record["counts"], record["ledger"]))


def make_unit_checkpoints(folder: Path) -> None:
    checkpoints.embed_scenes(checkpoints.Scenes(checkpoints.SHARD), folder / "first", folder / "checkpoints")


def read_unit_checkpoints(folder: Path) -> Result:
    """Embed the shard again with its checkpoints: a damaged one is not used, so that nothing changes."""
    scenes = checkpoints.Scenes(checkpoints.SHARD)
    return Result(digest_of(checkpoints.embed_scenes(scenes, folder / "second", folder / "checkpoints")))


def make_published(folder: Path) -> None:
    from tests.support import builds

    builds.write_published(folder / "published", "36LXK", 12)


def read_published(folder: Path) -> Result:
    """Read the rows of a database from a file of another writer."""
    from tests.support import builds

    (file,) = builds.find_published(folder / "published")
    return Result(digest_of([batch.to_pylist() for batch in file.read()]))


def has_no_checksum(sound: Path, damaged: Path) -> bool:
    """Return True: the file has no checksums, so that only its writer could tell."""
    return True


def make_one_product(folder: Path) -> None:
    products.make_product(folder / "made", columns=COLUMNS)


def read_one_product(folder: Path) -> Result:
    frame = read_product(folder / "made" / "products" / "2021.json")
    rows = [(row["chip_id"], np.asarray(row["embeddings"]).tobytes(), row.geometry.wkb) for _, row in frame.iterrows()]
    others = frame.drop(columns=["embeddings", "geometry"]).astype(str).to_csv()
    return Result(digest_of(rows, others))


def make_cache(folder: Path) -> None:
    from kiln.explorer.build import Select, build

    product = products.make_product(folder / "made", columns=COLUMNS)
    build([product.record_file], [product.uri], str(folder / "db"), Select())
    read_cache(folder)


def read_cache(folder: Path) -> Result:
    from kiln.explorer.database import ExplorerDatabase
    from kiln.explorer.matrix import BOX
    from kiln.explorer.matrix_cache import open_matrix

    if (folder / "cache" / "matrix").exists():
        (home,) = (folder / "cache" / "matrix").iterdir()
        home.rename(home.with_name(digest(str((folder / "db").resolve()))[:16]))  # it is found by the database's path
    matrix = open_matrix(ExplorerDatabase(str(folder / "db")), folder / "cache")
    columns = [matrix[name].tobytes() for name in ("lon", "lat", "year", "time", "dataset", "norm", "colour", *BOX)]
    return Result(digest_of(matrix.vectors.tobytes(), matrix.texts.to_pylist(), columns))


KINDS = (
    Kind("NAIP rasters", 70, make_naip, damage_one("*.tif"), read_naip, is_rot_without_checksum),
    Kind("WorldCover rasters", 35, make_worldcover, damage_one("*.tif"), read_worldcover, is_rot_without_checksum),
    Kind("Sentinel-2 rasters", 24, make_sentinel2, damage_one("*.tif"), read_sentinel2, is_rot_without_checksum),
    Kind("items", 77, make_sentinel2, damage_item, read_sentinel2),
    Kind("manifests", 49, make_manifests, damage_one("*"), read_manifests, is_plain_text),
    Kind("plans", 65, make_plan, damage_plan, read_plans),
    Kind("weights", 26, make_weights, damage_one("*"), read_weights),
    Kind("checkpoints", 42, make_checkpoint, damage_checkpoint, read_checkpoint),
    Kind("shards", 50, make_shards, damage_one("*[0-9a-f].parquet"), read_shards),
    Kind("ledgers", 24, make_shards, damage_one("*.ledger.parquet"), read_shards),
    Kind("unit checkpoints", 30, make_unit_checkpoints, damage_one("checkpoints/*"), read_unit_checkpoints),
    Kind("published files", 67, make_published, damage_one("*.parquet"), read_published, has_no_checksum),
    Kind("product parts", 60, make_one_product, damage_one("part-*.parquet"), read_one_product),
    Kind("caches", 16, make_cache, damage_one("cache/*/*/*/*"), read_cache),
)
