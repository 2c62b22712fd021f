"""Print what a run takes, from its plans: units, shards, chips, bytes, hours and prices."""

import json

from kiln.cli import command_line
from kiln.formats import vectors
from kiln.report.estimate import Rates, estimate_text, summarise


def main(argv: list[str] | None = None) -> None:
    """Print the estimate."""
    parser = command_line.parser(__doc__, "python -m scripts.estimate")
    parser.add_argument("--plans", nargs="+", required=True, help="paths or s3:// of the plans, where the run has them")
    parser.add_argument(
        "--numbers", type=json.loads, required=True, help="JSON: `plan` of the config, rates and prices"
    )
    parser.add_argument("--dimensions", type=int, default=1024, help="numbers of a vector")
    parser.add_argument("--vector-dtype", choices=vectors.VECTOR_DTYPES, default="float16", help="dtype of the vectors")
    parser.add_argument("--embedding", choices=vectors.EMBEDDINGS, default="class", help="vectors of a row")
    parser.add_argument("--patches", type=json.loads, default={}, help="JSON: stored patches of a chip, by dataset")
    args = parser.parse_args(argv)

    def work() -> None:
        rates = Rates.from_json(args.numbers)
        options = (args.dimensions, args.vector_dtype, args.embedding, args.patches)
        print(estimate_text([row for plan in args.plans for row in summarise(plan, *options)], rates))

    command_line.run(work)


if __name__ == "__main__":
    main()
