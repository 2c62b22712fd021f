"""Write a product in the layout that its archive's embeddings were published in before.

kiln export --record results/conus/.../products/2021/0123456789abcdef.json --out published
"""

import logging

from kiln.cli import command_line
from kiln.product.export import export_product

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Export one product."""
    parser = command_line.parser(__doc__, "kiln export")
    parser.add_argument("--record", required=True, help="path or s3:// of the product's record")
    parser.add_argument("--product", help="path or s3:// of its folder, if not the record's name without .json")
    parser.add_argument("--out", required=True, help="folder or s3:// to write to")
    parser.add_argument("--version", default="002", help="of the published series")
    args = parser.parse_args(argv)

    def work() -> None:
        names = export_product(args.record, args.out, product=args.product, version=args.version)
        log.info("%s: %d files", args.out, len(names))

    command_line.run(work)


if __name__ == "__main__":
    main()
