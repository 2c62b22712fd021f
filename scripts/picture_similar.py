"""Draw the contact sheet of an example chip and its nearest neighbours (rule picture_similar)."""

import logging

from kiln.cli import command_line
from kiln.explorer.api import open_explorer
from kiln.explorer.contact_sheet import find_example, read_services, write_contact_sheet
from kiln.explorer.results import as_text

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Draw the contact sheet; an empty one for a database without chips."""
    p = command_line.parser(__doc__, "python -m scripts.picture_similar")
    p.add_argument("--db", required=True, help="path or s3:// of the explorer database")
    p.add_argument("-k", type=int, default=10, help="number of neighbours")
    p.add_argument("--pictures", default="{}", help="config file, or JSON of its `pictures`: image services")
    p.add_argument("--png", required=True, metavar="FILE", help="the picture to write")
    args = p.parse_args(argv)

    def work() -> None:
        services = read_services(args.pictures)
        explorer = open_explorer(args.db)
        result = find_example(explorer, args.k, services)
        if explorer.database.untrained:
            log.warning("UNTRAINED weights: these similarities are a demonstration")
        if result is not None:
            print(as_text(result.reference, result.hits))
        write_contact_sheet(args.png, result, services, untrained=explorer.database.untrained)

    command_line.run(work)


if __name__ == "__main__":
    main()
