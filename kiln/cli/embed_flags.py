"""Command-line flags for the options of an embedding job."""

import argparse
from dataclasses import fields

from kiln.engine.options import EmbedOptions
from kiln.formats import vectors


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag per field of EmbedOptions."""
    add = parser.add_argument
    add("--vector-dtype", choices=vectors.VECTOR_DTYPES, default="float16", help="dtype of the vectors")
    add("--embedding", choices=vectors.EMBEDDINGS, default="class", help="class token, mean of patch tokens, or both")
    add(
        "--patches",
        action="store_true",
        help="also all patch tokens, in <shard>.patches.parquet: 2 MB a chip of 256 px",
    )
    add("--max-failed-fraction", type=float, default=0.5, help="fraction of failed units above which the shard fails")
    add("--batch-size", type=int, default=8, help="chips encoded together")
    add("--threads", type=int, default=0, help="threads of the encoder; 0: as many as cores")
    add("--read-threads", type=int, default=4, help="threads that read and decode ahead of the encoder")
    add("--read-ahead-mb", type=int, default=512, help="MB of pixels held ahead of the encoder")
    add("--device", default="cpu", help="cpu, cuda (a GPU that no other job holds) or cuda:N")


def read_options(args: argparse.Namespace) -> EmbedOptions:
    """Return the options of the given flags. Raises ConfigError for one out of its range."""
    return EmbedOptions(**{field.name: getattr(args, field.name) for field in fields(EmbedOptions)})
