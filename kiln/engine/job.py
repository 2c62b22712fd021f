"""One embedding job: what the embed scripts share besides their sources - flags, identity, putting files in place."""

import argparse
import logging
import os
import platform
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from kiln import __version__
from kiln.archives.registry import get_archive
from kiln.cli import command_line
from kiln.errors import ConfigError, KilnError
from kiln.formats import plan_file, vectors
from kiln.formats.fingerprint import fingerprint
from kiln.formats.records import Source
from kiln.io import storage
from kiln.model.device import claim_device
from kiln.model.identity import RECIPE

log = logging.getLogger(__name__)
MODEL = "Clay v1.5"


def parser(doc: str | None, prog: str) -> argparse.ArgumentParser:
    """The flags of every embed script; the script adds those of its dataset."""
    p = command_line.parser(doc, prog)
    where = p.add_argument_group("what and where")
    where.add_argument("--units", required=True, metavar="PLAN", help="path or s3:// of the plan, one line per shard")
    where.add_argument("--shard", help="name of the shard in the plan")
    index = os.environ.get(plan_file.INDEX)
    where.add_argument(
        "--index",
        type=int,
        default=index,
        help=f"or its line, counted from 0; from {plan_file.INDEX} where that is set",
    )
    where.add_argument("--weights", type=Path, required=True, help="safetensors of the rule encoder_weights")
    where.add_argument("--folder", required=True, help="path or s3:// where the shards and their ledgers lie")
    where.add_argument("--output", help="the embeddings file, if not <folder>/<shard>.parquet")
    where.add_argument("--overwrite", action="store_true", help="do a finished shard again")
    value = p.add_argument_group("what changes a vector (part of the fingerprint)")
    value.add_argument("--storage", choices=vectors.VECTOR_DTYPES, default="float16", help="type of the vectors")
    value.add_argument(
        "--embedding",
        choices=vectors.EMBEDDINGS,
        default="class",
        help="class token, mean of patch tokens, or both",
    )
    value.add_argument(
        "--patches",
        action="store_true",
        help="and all patch tokens, in <shard>.patches.parquet: 2 MB a chip of 256 px",
    )
    value.add_argument("--gsd", choices=("as_trained", "actual"), default="as_trained", help="what the model is told")
    value.add_argument("--max-nodata", type=float, default=0.05, help="share of a chip; more is skipped and counted")
    value.add_argument("--expect-fingerprint", metavar="HEX", help="stop unless the fingerprint begins like this")
    how = p.add_argument_group("how")
    how.add_argument("--max-failed-fraction", type=float, default=0.5, help="of units; more fails the shard loudly")
    how.add_argument("--batch-size", type=int, default=8, help="chips encoded together")
    how.add_argument("--threads", type=int, default=0, help="of the encoder; 0: as many as cores")
    how.add_argument("--read-threads", type=int, default=4, help="reading and decoding ahead of the encoder")
    how.add_argument("--read-ahead-mb", type=int, default=512, help="megabytes of pixels held ahead of the encoder")
    how.add_argument("--device", default="cpu", help="cpu, cuda (a card that no other job holds) or cuda:N")
    how.add_argument("--parts", help="path or s3:// of a folder that keeps finished units until the shard is whole")
    return p


def choose(args: argparse.Namespace, dataset: str) -> dict[str, Any] | None:
    """The plan's line to do; None if there is nothing to do, which is said in the log.

    Raises ConfigError for flags out of range, or a plan of another dataset.
    """
    for flag in ("batch_size", "read_threads"):
        if getattr(args, flag) < 1:
            raise ConfigError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: want 1 or more")
    for flag in ("max_nodata", "max_failed_fraction"):
        if not 0 <= getattr(args, flag) <= 1:
            raise ConfigError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: want a share, 0 to 1")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise ConfigError(f"--device {args.device}: want cpu, cuda or cuda:N")
    line = plan_file.pick(args.units, shard=args.shard, index=args.index)
    if line is None:
        log.info("line %d is past the end of %s: nothing to do", args.index, args.units)
        return None
    if line["dataset"] != dataset:
        raise ConfigError(f"{args.units}: a plan of {line['dataset']}, not of {dataset}")
    args.output = args.output or storage.join(args.folder, f"{line['shard']}.parquet")
    if storage.stat(args.output) and not args.overwrite:
        log.info("%s is finished: left alone (--overwrite does it again)", args.output)
        return None
    return line


def run(
    args: argparse.Namespace,
    line: dict[str, Any],
    source: Source,
    *,
    dataset: str,
    lattice: dict[str, Any],
    metadata: str,
    gsd: float | None,
    max_cloud: float | None = None,
) -> None:
    """Embed the shard `line` of a plan from its source; `gsd` in metres is what the model is told (None: each chip's).

    Everything that would fail again fails before the weights load. Raises any KilnError.
    """
    # here: torch is slow to import, and --help should not be
    from kiln.engine import pipeline
    from kiln.engine.checkpoints import Parts
    from kiln.formats import patch_file
    from kiln.formats.ledger import ledger_name, write_ledger
    from kiln.model import embedder, int8
    from kiln.model import weights as encoders

    about_weights = encoders.read_metadata(args.weights)
    settings = {
        "weights": about_weights["sha256"],
        "precision": about_weights["precision"],
        "dtype": args.storage,
        "embedding": args.embedding,
        "patches": args.patches,
        "metadata": metadata,
        "gsd": args.gsd,
        "max_nodata": args.max_nodata,
        "max_cloud": max_cloud,
        "lattice": lattice,
    }
    archive = get_archive(dataset)
    recipes = {"clay": RECIPE, dataset: archive.recipe}
    identity = fingerprint(dataset, sensor=archive.sensor, recipes=recipes, **settings)
    if args.expect_fingerprint and not identity.startswith(args.expect_fingerprint):
        raise ConfigError(
            f"these flags and weights have the fingerprint {identity[:8]}, but {args.expect_fingerprint} is expected: "
            "the weights are another file, or flags and folder do not belong together"
        )
    about = {
        "dataset": dataset,
        "partition": line["partition"],
        "fingerprint": identity,
        "recipes": recipes,
        **_model(about_weights, args.embedding),
        **_pixels(source, settings, gsd),
        "software": _software(),
    }
    sizes = about_weights["geometry"]
    if args.patches:
        about["patches"] = patch_file.patches_metadata(lattice, sizes["patch"], sizes["dim"])
    policy = embedder.EmbedPolicy(
        "zeros" if metadata == "zeros" else "as_trained", gsd, args.storage, args.embedding, args.patches
    )
    budget = pipeline.Budget(args.batch_size, args.read_threads, args.read_ahead_mb << 20)
    parts = Parts.of(args.parts, about | {"device": args.device.partition(":")[0]}) if args.parts else None
    beside = patch_file.patches_name(storage.join(args.folder, f"{line['shard']}.parquet"))
    with (
        claim_device(args.device) as device,
        storage.atomic(args.output) as partial,
        storage.atomic(beside) if args.patches else nullcontext() as partial_patches,
    ):
        if about_weights["precision"] == "int8":
            int8.require_int8(device)
        source.check()
        outcome = pipeline.embed(
            source,
            _loader(args, about_weights["precision"], device),
            sizes["dim"],
            partial,
            about,
            policy=policy,
            budget=budget,
            max_failed_fraction=args.max_failed_fraction,
            parts=parts,
            patch_file=partial_patches,
        )
        ledger = ledger_name(storage.join(args.folder, f"{line['shard']}.parquet"))
        with storage.atomic(ledger) as partial_ledger:
            write_ledger(partial_ledger, outcome.ledger)
    if parts:
        try:
            parts.remove(source.units())
        except KilnError as e:  # the shard is whole: no reason to fail, after which Snakemake would delete it
            log.warning("parts of a shard that is whole remain: %s", e)
    log.info("%s: %d rows of %d units", args.output, outcome.rows, len(outcome.ledger))


def _loader(args: argparse.Namespace, precision: str, device: str) -> Callable[[], Any]:
    def load() -> Any:
        import torch

        from kiln.model import weights as encoders

        if args.threads:
            torch.set_num_threads(args.threads)
        return encoders.load_encoder(args.weights, precision=precision, device=device)  # type: ignore[arg-type]

    return load


def _model(weights: dict[str, Any], embedding: str) -> dict[str, Any]:
    """Of the `kiln` metadata: which weights made the vectors."""
    return {
        "model": MODEL,
        "weights_sha256": weights["sha256"],
        "checkpoint": weights.get("checkpoint", ""),
        "untrained": bool(weights.get("untrained")),
        "embedding": embedding,
        "dimensions": weights["geometry"]["dim"],
        "precision": weights["precision"],
    }


def _pixels(source: Source, settings: dict[str, Any], gsd: float | None) -> dict[str, Any]:
    """Of the `kiln` metadata: what the model was shown, and in which type its vectors are kept."""
    sensor = source.sensor
    return {
        "storage": settings["dtype"],
        **vectors.dequantisation_metadata(settings["dtype"], settings["embedding"]),
        "normalisation": {"bands": sensor.bands, "mean": sensor.mean, "std": sensor.std},
        "wavelengths": sensor.wavelengths,
        "gsd": "actual" if gsd is None else gsd,
        "metadata": settings["metadata"],
        "chip_size": settings["lattice"]["chip_size"],
        "lattice": settings["lattice"],
        "limits": {"max_nodata": settings["max_nodata"], "max_cloud": settings["max_cloud"]},
    }


def _software() -> dict[str, str]:
    """Of the `kiln` metadata: versions of what had a hand in the vectors."""
    import numpy
    import pyarrow
    import rasterio
    import torch

    return {
        "kiln": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "rasterio": rasterio.__version__,
        "gdal": rasterio.__gdal_version__,
    }
