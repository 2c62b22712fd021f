"""Print what a run takes, from its plans and finished shards: chips, bytes, hours, memory and prices."""

import json

from kiln.cli import command_line
from kiln.formats import vectors
from kiln.model.tuning_file import FOLDER
from kiln.report.estimate import RowSize, Scope
from kiln.report.estimate_text import run_estimate_text
from kiln.report.rates import EncoderUse


def main(argv: list[str] | None = None) -> None:
    """Print the estimate."""
    parser = command_line.parser(__doc__, "python -m scripts.estimate")
    parser.add_argument("--plans", nargs="+", required=True, help="paths or s3:// of the plans, where the run has them")
    parser.add_argument("--numbers", type=json.loads, required=True, help="JSON: `plan` of the config, rate and prices")
    parser.add_argument("--dimensions", type=int, default=1024, help="numbers of a vector")
    parser.add_argument("--vector-dtype", choices=vectors.VECTOR_DTYPES, default="float16", help="dtype of the vectors")
    parser.add_argument("--embedding", choices=vectors.EMBEDDINGS, default="class", help="vectors of a row")
    parser.add_argument("--patches", type=json.loads, default={}, help="JSON: stored patches of a chip, by dataset")
    parser.add_argument("--encoder", type=json.loads, help="JSON: untrained, precision, device, threads, batch")
    parser.add_argument("--chip-px", type=json.loads, default={}, help="JSON: side of an encoded chip, by dataset")
    parser.add_argument("--tuned", action="store_true", help="use rates that kiln tune measured on this machine")
    parser.add_argument("--memory-mb", type=int, help="memory of an embedding job in MB")
    parser.add_argument("--partitions", nargs="+", default=[], help="patterns of the partitions that the run takes")
    parser.add_argument("--allow-missing", action="store_true", help="count finished shards only: nothing is embedded")
    args = parser.parse_args(argv)

    def work() -> None:
        text = run_estimate_text(
            args.plans,
            RowSize(args.dimensions, args.vector_dtype, args.embedding, args.patches),
            args.numbers,
            use=EncoderUse(**args.encoder) if args.encoder else None,
            chip_px=args.chip_px,
            tuning=FOLDER if args.tuned else None,
            memory_mb=args.memory_mb,
            scope=Scope(args.partitions, args.allow_missing),
        )
        print(text)

    command_line.run(work)


if __name__ == "__main__":
    main()
