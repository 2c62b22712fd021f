"""The flags that the embedding scripts share, and the job that they run."""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from kiln.archives.registry import get_archive
from kiln.cli import command_line
from kiln.engine.job import EmbedOptions, embed_shard
from kiln.errors import ConfigError
from kiln.formats import embeddings_file, plan_file, vectors
from kiln.formats.records import Source, SourceInfo
from kiln.io import storage

log = logging.getLogger(__name__)


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
    value.add_argument("--storage", choices=vectors.STORAGES, default="float16", help="type of the vectors")
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
    embed_options(args)
    if not 0 <= args.max_nodata <= 1:
        raise ConfigError(f"--max-nodata: expected a fraction from 0 to 1, got {args.max_nodata}. Correct it.")
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


def embed_options(args: argparse.Namespace) -> EmbedOptions:
    """Return the options that the flags describe. Raises ConfigError for flags out of range."""
    return EmbedOptions(
        vector_dtype=args.storage,
        embedding=args.embedding,
        patches=args.patches,
        max_failed_fraction=args.max_failed_fraction,
        batch_size=args.batch_size,
        threads=args.threads,
        read_threads=args.read_threads,
        read_ahead_mb=args.read_ahead_mb,
        device=args.device,
    )


def run(
    args: argparse.Namespace,
    line: dict[str, Any],
    source: Source,
    *,
    lattice: dict[str, Any],
    native_gsd: float | None,
    max_cloud: float | None = None,
) -> None:
    """Embed the shard `line` of a plan from its source. Raises any KilnError."""
    archive = get_archive(line["dataset"])
    source.info = SourceInfo(
        dataset=archive.name,
        partition=line["partition"],
        sensor=archive.sensor,
        recipe=archive.recipe,
        lattice=lattice,
        metadata=args.metadata,
        gsd=args.gsd,
        native_gsd=native_gsd,
        max_nodata=args.max_nodata,
        max_cloud=max_cloud,
    )
    embed_shard(
        source,
        weights=args.weights,
        output=args.output,
        ledger=embeddings_file.ledger_name(storage.join(args.folder, f"{line['shard']}.parquet")),
        options=embed_options(args),
        checkpoints=args.parts,
        expect_fingerprint=args.expect_fingerprint,
    )
