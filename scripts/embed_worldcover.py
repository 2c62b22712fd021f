"""Embed one shard of WorldCover columns: tiles in, an embeddings file and its ledger out.

By hand, the first shard of a plan:

    python -m kiln.archives.worldcover.plan --archive s3://esa-worldcover-s2/rgbnir --year 2021 --region conus \\
        --output plan.jsonl
    python -m scripts.embed_worldcover --units plan.jsonl --index 0 --folder shards \\
        --weights results/models/1234abcd-float32.safetensors

In an AWS Batch array job --index may be left out, and an index past the last line is no error. A finished shard is
left alone. Its ledger is put in place just before the embeddings, so a file that is there is whole, and so is its
account.
"""

import logging

from kiln.archives.worldcover.lattice import Column, Lattice
from kiln.archives.worldcover.source import Tile, WorldCoverSource
from kiln.cli import command_line
from scripts import embed_common

log = logging.getLogger(__name__)
METRES_PER_DEGREE = 111_195  # of latitude, on a sphere of 6371 km


def main(argv: list[str] | None = None) -> None:
    """Embed one shard."""
    p = embed_common.parser(__doc__, "scripts.embed_worldcover")
    own = p.add_argument_group("WorldCover")
    own.add_argument(
        "--metadata",
        choices=("zeros", "as_published"),
        default="zeros",
        help="date and place told to the model: none (an annual median has no week), or June 1st",
    )
    args = p.parse_args(argv)

    def work() -> None:
        line = embed_common.choose(args, "worldcover")
        if line is None:
            return
        lattice = Lattice(line["chip"], line["ppd"])
        source = WorldCoverSource(
            lattice,
            line["year"],
            [Column(*c) for c in line["columns"]],
            [Tile(*t) for t in line["tiles"]],
            root=line["archive"],
            max_nodata=args.max_nodata,
            encode=line["encode"],
        )
        layout = {"chip_size": lattice.chip, "pixels_per_degree": lattice.ppd, "encode": line["encode"]}
        embed_common.run(args, line, source, lattice=layout, native_gsd=METRES_PER_DEGREE / lattice.ppd)

    command_line.run(work)


if __name__ == "__main__":
    main()
