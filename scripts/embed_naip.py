"""Embed one shard of NAIP scenes: scenes in, an embeddings file and its ledger out.

By hand, the first shard of a plan:

    python -m kiln.archives.naip.plan --manifest manifest.zip --states nd --years 2019 --output plan.jsonl.gz
    python -m scripts.embed_naip --units plan.jsonl.gz --index 0 --folder shards \\
        --weights results/models/1234abcd-float32.safetensors

In an AWS Batch array job --index may be left out, and an index past the last line is no error. A finished shard is
left alone. Scenes that cannot be read are `failed` rows of the ledger, which is put in place just before the file.
"""

from kiln.archives.naip.source import NaipSource
from kiln.cli import command_line
from scripts import embed_common


def main(argv: list[str] | None = None) -> None:
    """Embed one shard."""
    p = embed_common.parser(__doc__, "scripts.embed_naip")
    own = p.add_argument_group("NAIP")
    own.add_argument("--chip-size", type=int, default=256, help="pixels of a chip's side")
    own.add_argument("--edge", choices=("drop", "align"), default="drop", help="what is less than a chip at the edges")
    own.add_argument(
        "--lattice",
        choices=("scene", "utm"),
        default="scene",
        help="chips from scenes' top left, or a zone's grid",
    )
    own.add_argument("--lattice-gsd", type=float, default=1.0, help="metres a pixel of that grid")
    own.add_argument(
        "--metadata", choices=("as_trained", "zeros"), default="as_trained", help="date and place told to the model"
    )
    args = p.parse_args(argv)

    def work() -> None:
        line = embed_common.choose(args, "naip")
        if line is None:
            return
        source = NaipSource(
            line["units"],
            archive=line["archive"],
            chip=args.chip_size,
            max_nodata=args.max_nodata,
            edge=args.edge,
            lattice=args.lattice,
            lattice_gsd=args.lattice_gsd,
        )
        embed_common.run(args, line, source, lattice=source.layout, native_gsd=source.lattice_gsd)

    command_line.run(work)


if __name__ == "__main__":
    main()
