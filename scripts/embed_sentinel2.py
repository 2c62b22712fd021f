"""Embed one shard of Sentinel-2 items: items in, an embeddings file and its ledger out.

By hand, the first shard of a plan:

    python -m kiln.archives.sentinel2.plan --items items.txt --output plan.jsonl.gz
    python -m scripts.embed_sentinel2 --units plan.jsonl.gz --index 0 --folder shards \\
        --weights results/models/1234abcd-float32.safetensors

In an AWS Batch array job --index may be left out, and an index past the last line is no error. A finished shard is
left alone. Items that cannot be read are `failed` rows of the ledger, which is put in place just before the file.
"""

import argparse

from kiln.archives.sentinel2.layout import OFFSET_MAX_DARK_FRACTION
from kiln.archives.sentinel2.source import Sentinel2Source
from kiln.cli import command_line
from kiln.errors import ConfigError
from scripts import embed_common


def prefixes(text: str) -> tuple[str, str]:
    """Old and new prefix of `OLD=NEW`. Raises ArgumentTypeError for another text."""
    old, mark, new = text.partition("=")
    if not old or not mark or not new:
        raise argparse.ArgumentTypeError(f"{text!r}: want OLD=NEW")
    return old, new


def main(argv: list[str] | None = None) -> None:
    """Embed one shard."""
    p = embed_common.parser(__doc__, "scripts.embed_sentinel2")
    own = p.add_argument_group("Sentinel-2")
    own.add_argument("--chip-size", type=int, default=256, help="pixels of a chip's side, 10 m each")
    own.add_argument("--max-cloud", type=float, default=0.5, help="share of a chip's valid pixels; more is skipped")
    own.add_argument(
        "--metadata", choices=("as_trained", "zeros"), default="as_trained", help="date and place told to the model"
    )
    own.add_argument(
        "--contradicted",
        type=float,
        default=OFFSET_MAX_DARK_FRACTION,
        help="share of clear pixels below 1000 that shows that the offset is gone already",
    )
    own.add_argument(
        "--rewrite",
        type=prefixes,
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="read what begins with OLD from NEW (a bucket, mirror or folder); may be given several times",
    )
    args = p.parse_args(argv)

    def work() -> None:
        if not 0 <= args.max_cloud <= 1:
            raise ConfigError(f"--max-cloud {args.max_cloud}: want a share, 0 to 1")
        line = embed_common.choose(args, "sentinel2")
        if line is None:
            return
        if not isinstance(line.get("items"), dict) or set(line["items"]) != set(line["units"]):
            raise ConfigError(f"{args.units}: shard {line['shard']} does not say where its items are; make it again")
        source = Sentinel2Source(
            [{"id": i, "href": line["items"][i]} for i in line["units"]],
            chip=args.chip_size,
            max_nodata=args.max_nodata,
            max_cloud=args.max_cloud,
            rewrite=args.rewrite,
            contradicted=args.contradicted,
        )
        embed_common.run(args, line, source, lattice=source.layout, native_gsd=None, max_cloud=args.max_cloud)

    command_line.run(work)


if __name__ == "__main__":
    main()
