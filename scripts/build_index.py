"""Build or grow the explorer database from merged products and published files (rule build_index).

Published files alone, without a workflow:

    python -m scripts.build_index --published '[{"name": "tiles", "files": "/data/tiles", "model": "Clay v1",
        "layout": "clay-v1"}]' --db explorer --record explorer.json
"""

import json

from kiln.cli import command_line
from kiln.explorer.build.builder import build_index
from kiln.explorer.build.products import Select
from kiln.explorer.build.published import files_of
from kiln.explorer.build.published_sets import read_sets


def main(argv: list[str] | None = None) -> None:
    """Build or grow the explorer database."""
    p = command_line.parser(__doc__, "python -m scripts.build_index")
    p.add_argument("--records", nargs="*", default=[], help="records of the products to search together")
    p.add_argument(
        "--products", nargs="*", help="their folders, path or s3://, if not the records' names without .json"
    )
    p.add_argument(
        "--published", type=json.loads, default=[], help="JSON of index.published: files that others published"
    )
    p.add_argument("--db", required=True, help="path or s3:// of the database")
    p.add_argument("--record", required=True, help="the record, written last")
    p.add_argument("--withdraw", metavar="FOLDER", help="folder of records: delete those of earlier builds")
    p.add_argument("--select", type=json.loads, default={}, help="JSON of index.select: which products and rows go in")
    args = p.parse_args(argv)

    def work() -> None:
        build_index(
            args.records,
            args.products or [r.removesuffix(".json") for r in args.records],
            args.db,
            args.record,
            select=Select.from_json(args.select),
            files=files_of(read_sets(args.published)),
            other_records=args.withdraw,
        )

    command_line.run(work)


if __name__ == "__main__":
    main()
