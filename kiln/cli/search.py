"""Search an explorer database for the chips most like a chip, a place or a set of marks.

    kiln search --db results/sample/explorer --at -95.6,43.5 -k 10 --png similar.png
    kiln search --db results/sample/explorer --marks marks.geojson --method linear --apart 5 -k 100

Method linear, --apart and --area use an array of all vectors, which the first such search of a database builds in the
cache folder.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from kiln.cli import command_line, filter_flags
from kiln.errors import ConfigError
from kiln.explorer import results
from kiln.explorer.api import Explorer, open_explorer
from kiln.explorer.contact_sheet import find_example, read_services, write_contact_sheet
from kiln.explorer.filters import ChipFilter
from kiln.explorer.footprints import Footprints
from kiln.explorer.matrix_cache import default_cache
from kiln.explorer.search import METHODS, Query, SearchResult
from kiln.formats.bounding_box import check_bounding_box
from kiln.io import storage

log = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    p = command_line.parser(__doc__, "kiln search")
    p.add_argument("--db", required=True, help="path or s3:// of the explorer database")
    query = p.add_argument_group("what the results should be like")
    first = query.add_mutually_exclusive_group()
    first.add_argument("--chip", metavar="ID", help="a chip")
    first.add_argument(
        "--at", type=filter_flags.degrees(2), metavar="LON,LAT", help="the newest chip that covers this point"
    )
    first.add_argument("--example", action="store_true", help="a chip that makes a good example")
    query.add_argument("--like", metavar="ID", action="append", default=[], help="a chip (may be repeated)")
    query.add_argument("--dislike", metavar="ID", action="append", default=[], help="a chip to avoid (may be repeated)")
    query.add_argument("--marks", metavar="FILE", help="likes and dislikes, GeoJSON as the explorer saves it")
    query.add_argument("--method", choices=METHODS, default="mean", help="how marks become a ranking")
    query.add_argument("--apart", type=float, default=0.0, metavar="KM", help="minimum distance between results")
    query.add_argument("-k", type=int, default=10, help="number of results")
    filters = p.add_argument_group("filters of the results")
    filters.add_argument("--dataset", action="append", default=[], help="of this dataset (may be repeated)")
    filter_flags.add_filters(filters, bbox="with the centre in this box", area="with the centre in this area")
    output = p.add_argument_group("output")
    output.add_argument("--format", choices=("table", "json", "geojson"), default="table", help="of standard output")
    output.add_argument("--parquet", metavar="FILE", help="also write the results as GeoParquet")
    output.add_argument("--embeddings", action="store_true", help="with their vectors (--parquet)")
    output.add_argument("--png", metavar="FILE", help="also write a contact sheet")
    output.add_argument("--pictures", default="{}", help="config file, or JSON of its `pictures`: image services")
    output.add_argument("--cache", type=Path, default=default_cache(), help="folder of the array of all vectors")
    return p


def chip_filter_of(args: argparse.Namespace) -> ChipFilter:
    """Return the filters of the command's options."""
    return ChipFilter.from_json(
        {
            "years": args.year,
            "datasets": args.dataset,
            "bbox": list(check_bounding_box(args.bbox)) if args.bbox else None,
            "area": filter_flags.read_geojson(args.area, "--area") if args.area else None,
            "from": args.first_day,
            "to": args.last_day,
            "max_nodata": args.max_nodata,
            "max_cloud": args.max_cloud,
        }
    )


def query_of(args: argparse.Namespace) -> Query:
    """Return the search of the command's options."""
    likes, dislikes = results.read_marks(filter_flags.read_geojson(args.marks, "--marks")) if args.marks else ((), ())
    return Query(
        likes=(*([args.chip] if args.chip else []), *likes, *args.like),
        dislikes=(*dislikes, *args.dislike),
        at=args.at,
        method=args.method,
        k=args.k,
        apart_km=args.apart,
        chip_filter=chip_filter_of(args),
    )


def print_result(result: SearchResult, output_format: str, footprints: Footprints | None) -> None:
    """Print a result as table, json or geojson; geojson needs the footprints of its chips."""
    if output_format == "table":
        print(results.as_text(result.reference, result.hits))
        return
    if footprints is not None and output_format == "geojson":
        value = results.as_geojson(result.hits, footprints, reference=result.reference)
    else:
        value = results.as_json(result.reference, result.hits)
    json.dump(value, sys.stdout, indent=1)
    print()


def write_parquet(path: str, explorer: Explorer, result: SearchResult, footprints: Footprints, vectors: bool) -> None:
    """Write a result as GeoParquet, atomically; with its vectors if they are asked for."""
    with storage.atomic(path) as partial:
        embeddings = result.vectors if vectors else None
        results.write_geoparquet(partial, result.hits, footprints, explorer.metadata, embeddings)
    log.info("%s: %d chips", path, len(result.hits))


def main(argv: list[str] | None = None) -> None:
    """Search."""
    p = parser()
    args = p.parse_args(argv)
    if not any((args.chip, args.at, args.example, args.like, args.marks)):
        p.error("one of the arguments --chip --at --example --like --marks is required")
    if args.example and (args.like or args.dislike or args.marks or args.area or args.apart or args.method != "mean"):
        p.error("--example goes without marks, --area, --apart and --method linear")
    if args.embeddings and not args.parquet:
        p.error("--embeddings requires --parquet FILE")

    def work() -> None:
        services = read_services(args.pictures)
        query = None if args.example else query_of(args)
        explorer = open_explorer(args.db, args.cache)
        result = explorer.find(query) if query else find_example(explorer, args.k, services, chip_filter_of(args))
        if result is None:
            raise ConfigError(f"{args.db}: no chip in it that the filters leave")
        if result.note:
            log.info("%s", result.note)
        if explorer.database.untrained:
            log.warning("UNTRAINED weights: these similarities are a demonstration")
        footprints = None  # read once, and only for outputs that have them
        if args.format == "geojson" or args.parquet:
            footprints = explorer.footprints((result.reference, *(hit.chip for hit in result.hits)))
        print_result(result, args.format, footprints)
        if args.parquet and footprints is not None:
            write_parquet(args.parquet, explorer, result, footprints, args.embeddings)
        if args.png:
            write_contact_sheet(args.png, result, services, untrained=explorer.database.untrained)

    command_line.run(work)


if __name__ == "__main__":
    main()
