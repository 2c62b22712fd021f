"""Export a product, a part of it or the results of a search to files that other tools read.

    kiln export results/sample/naip-1a2b3c4d/products/nd-2019/0123456789abcdef.json --out clear.gpkg --max-cloud 0.1
    kiln export hits.parquet --out hits.csv --vectors
    kiln export s3://bucket/products/2021/0123456789abcdef.json --out vectors --format npy --bbox=-96,43,-95,44

Filters leave the chips that meet all of them. Files on S3 are read by ranges: row groups outside --bbox and --area are
not read. Format published is the layout that an archive's embeddings were published in before (WorldCover).
"""

import argparse
import logging

from kiln.cli import command_line, filter_flags
from kiln.errors import ConfigError, SourceError, StorageError
from kiln.formats.area import parse_area
from kiln.formats.bounding_box import check_bounding_box
from kiln.formats.days import parse_day
from kiln.io import storage
from kiln.io.text_table import format_bytes
from kiln.product.export.export_chips import FORMATS, export_chips
from kiln.product.export.published import DEFAULT_VERSION
from kiln.product.rows.row_filter import RowFilter

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    p = command_line.parser(__doc__, "kiln export")
    p.add_argument(
        "source",
        metavar="SOURCE",
        help="a product's record (.json) or folder, or one file of chips (.parquet): a part, a shard, or the results "
        "of `kiln search --parquet`; path or s3://",
    )
    output = p.add_argument_group("output")
    output.add_argument("--out", required=True, help="path or s3:// to write: a file; a folder for npy and published")
    output.add_argument("--format", choices=FORMATS, help="by default that of the suffix of --out")
    output.add_argument(
        "--vectors",
        action=argparse.BooleanOptionalAction,
        help="with or without vectors; by default with them in geoparquet and npy",
    )
    output.add_argument("--columns", metavar="A,B,...", help="columns to write, in this order; by default all")
    output.add_argument("--version", help=f"of the published series (default: {DEFAULT_VERSION}); for published only")
    filters = p.add_argument_group("filters")
    filter_flags.add_filters(
        filters, bbox="with a bounding box that meets this box", area="with a footprint that intersects this area"
    )
    filters.add_argument("--ids", metavar="FILE", help="with these ids: a text file, path or s3://, one chip_id a line")
    return p


def read_ids(uri: str) -> frozenset[str]:
    """Return the lines of a text file. Raise ConfigError if it has none, or there is no text file."""
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").splitlines()
    except (SourceError, StorageError, UnicodeDecodeError) as e:
        raise ConfigError(f"--ids: expected a text file, got {uri} ({e}). Correct it.") from e
    if ids := frozenset(filter(None, map(str.strip, lines))):
        return ids
    raise ConfigError(f"--ids: expected one chip_id a line, got an empty file {uri}. Correct it.")


def read_columns(text: str) -> list[str]:
    """Return the names with commas between them. Raise ConfigError for an empty one."""
    names = [name.strip() for name in text.split(",")]
    if all(names):
        return names
    raise ConfigError(f"--columns: expected names with commas between them, got {text!r}. Correct it.")


def row_filter_of(args: argparse.Namespace) -> RowFilter:
    """Return the filters of the command's options."""
    return RowFilter(
        bbox=check_bounding_box(args.bbox, "--bbox") if args.bbox is not None else None,
        area=parse_area(filter_flags.read_geojson(args.area, "--area")) if args.area is not None else None,
        first_day=parse_day(args.first_day, "from") if args.first_day is not None else None,
        last_day=parse_day(args.last_day, "to") if args.last_day is not None else None,
        years=tuple(args.year),
        max_nodata=args.max_nodata,
        max_cloud=args.max_cloud,
        chip_ids=read_ids(args.ids) if args.ids is not None else None,
    )


def main(argv: list[str] | None = None) -> None:
    """Export."""
    args = parser().parse_args(argv)

    def work() -> None:
        result = export_chips(
            args.source,
            args.out,
            args.format,
            row_filter=row_filter_of(args),
            vectors=args.vectors,
            columns=read_columns(args.columns) if args.columns is not None else None,
            version=args.version,
        )
        files = f" in {len(result.sizes)} files" if len(result.sizes) > 1 else ""
        log.info("%s: %s chips, %s%s", result.out, f"{result.chips:,}", format_bytes(result.size), files)

    command_line.run(work)


if __name__ == "__main__":
    main()
