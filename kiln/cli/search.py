"""Find the chips most like a chip, a place or a set of marks in an explorer database: table, JSON, GeoJSON, pictures.

python -m kiln.cli.search --db results/sample/explorer --at -0.6,43.5 -k 10 --png similar.png
python -m kiln.cli.search --db results/sample/explorer --marks marks.geojson --method linear --apart 5 -k 100

Marks, methods, areas, days, cloud and distance go the explorer's own way, through its matrix in the cache folder.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.explorer import filters, ranking, results
from kiln.explorer.database import Explorer, Filters
from kiln.explorer.matrix import BOX, Matrix, default_cache, open_matrix
from kiln.io import storage

log = logging.getLogger(__name__)
COLUMNS = 5  # of the contact sheet
EXAMPLES, EXAMPLES_FROM, LOOKED_AT = 48, 5000, 8  # chips tried as example, of so many; the best, which are looked at
SHOWN = ("chip_id", "similarity", "lon", "lat", "dataset", "year", "datetime", "item_id", "source")


def degrees(count: int) -> Any:
    """A parser of `count` numbers with commas between them."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            values = tuple(float(v) for v in text.split(","))
        except ValueError:
            values = ()
        if len(values) != count:
            raise argparse.ArgumentTypeError(f"{text!r}: want {count} numbers with commas between them")
        return values

    return parse


def search(db: Explorer, query: dict[str, Any], k: int, filters: Filters) -> list[dict[str, Any]]:
    """The k chips most like the query's, itself left out, most alike first."""
    hits = db.similar(query["vector"], k + 1, db.comparable(query["dataset"], filters))
    return [h for h in hits if h["chip_id"] != query["chip_id"]][:k]


def read_json(path: str, what: str) -> Any:
    """A file of JSON. Raises ConfigError."""
    try:
        return json.loads(Path(path).read_text())
    except (ValueError, OSError) as e:
        raise ConfigError(f"{what} {path}: no file of GeoJSON ({e})") from e


def marked(db: Explorer, args: argparse.Namespace) -> tuple[ranking.Query, Matrix]:
    """What the options ask, as the explorer's page asks it, and the matrix to look it up in."""
    values = {
        "years": args.year, "datasets": args.dataset, "bbox": list(args.bbox) if args.bbox else None,
        "area": read_json(args.area, "--area") if args.area else None, "from": args.first, "to": args.last,
        "max_nodata": args.max_nodata, "max_cloud": args.max_cloud,
    }  # fmt: skip
    where = filters.parse(values)
    likes, dislikes = results.read_marks(read_json(args.marks, "--marks")) if args.marks else ((), ())
    likes, dislikes = (*likes, *args.like), (*dislikes, *args.dislike)
    matrix = open_matrix(db, args.cache)
    if args.chip:
        likes = (args.chip, *likes)
    elif args.at:
        likes = (matrix.ids([matrix.at(*args.at, matrix.mask(where))])[0], *likes)
    return ranking.Query(likes, dislikes, args.method, args.k, args.apart, where), matrix


def row(facts: dict[str, Any]) -> dict[str, Any]:
    """A chip's facts as the database gives them."""
    when = facts["datetime"] and datetime.fromisoformat(facts["datetime"])
    return facts | {"datetime": when} | dict(zip(BOX, facts["bbox"], strict=True))


def example(db: Explorer, filters: Filters, k: int, services: dict[str, Any]) -> dict[str, Any] | None:
    """A query worth a picture: of those whose k likes stand out most from the rest, the one that shows most.

    Open sea stands out too, and shows nothing. None of no chips; `services` is `pictures` of the config.
    """
    from kiln.explorer import pictures

    rows = db.table.search().where(filters.sql() or "true").select(["chip_id"]).limit(EXAMPLES_FROM).to_list()
    ids = sorted(r["chip_id"] for r in rows)
    tried: list[tuple[float, dict[str, Any]]] = []
    for chip_id in ids[:: max(1, len(ids) // EXAMPLES)]:
        chip = db.chip(chip_id)
        hits = db.similar(chip["vector"], 8 * k, filters)
        tried.append((hits[min(k, len(hits) - 1)]["similarity"] - hits[-1]["similarity"], chip))
    best = [chip for _, chip in sorted(tried, key=lambda t: -t[0])[:LOOKED_AT]]
    with ThreadPoolExecutor(LOOKED_AT) as pool:
        shown = list(pool.map(lambda chip: pictures.picture(chip, services).detail, best))
    return best[shown.index(max(shown))] if best else None


def newest_year(db: Explorer, filters: Filters) -> tuple[int, ...]:
    """The newest year of what the filters leave: an example of one year shows a place once."""
    rows = db.table.search().where(filters.sql() or "true").select(["year"]).limit(max(1, db.table.count_rows()))
    years = rows.to_arrow()["year"]
    return tuple(y for y in [pc.max(years).as_py()] if y is not None)


def read_services(text: str) -> dict[str, Any]:
    """`pictures` of a config: its JSON, or the path of the config. Raises ConfigError."""
    try:
        if text.endswith((".yaml", ".yml")):
            return yaml.safe_load(Path(text).read_text()).get("pictures") or {}
        return json.loads(text)
    except (ValueError, OSError, AttributeError, yaml.YAMLError) as e:
        raise ConfigError(f"--pictures is no JSON, and no config file: {text} ({e})") from e


def as_table(query: dict[str, Any], hits: Sequence[dict[str, Any]]) -> str:
    """Aligned text: rank, similarity, where, when, id; the query first."""
    lines = [f"{'':>4}  {'cosine':>7}  {'lon':>11}  {'lat':>10}  {'year':>4}  chip"]
    for rank, r in enumerate([query, *hits]):
        place = f"{r['lon']:>11.5f}  {r['lat']:>10.5f}  {r['year'] or '':>4}"
        lines.append(f"{rank or 'like':>4}  {r.get('similarity', 1):>7.4f}  {place}  {r['chip_id']}")
    return "\n".join(lines)


def as_json(query: dict[str, Any], hits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Query and results with the facts in `SHOWN` and their boxes."""

    def plain(r: dict[str, Any]) -> dict[str, Any]:
        facts = {n: r[n] for n in SHOWN if n in r} | {"bbox": [r[n] for n in ("xmin", "ymin", "xmax", "ymax")]}
        facts["datetime"] = r["datetime"].isoformat().replace("+00:00", "Z") if r["datetime"] else None
        return facts

    return {"query": plain(query), "results": [plain(h) for h in hits]}


def as_geojson(query: dict[str, Any], hits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A FeatureCollection of the results' boxes, cut where they cross the antimeridian; the query is rank 0."""
    both = as_json(query, hits)
    features = []
    for rank, facts in enumerate([both["query"], *both["results"]]):
        w, s, e, n = bbox = facts.pop("bbox")
        rings = [
            [[[a, s], [b, s], [b, n], [a, n], [a, s]]] for a, b in ([(w, e)] if w <= e else [(w, 180.0), (-180.0, e)])
        ]
        cut = len(rings) > 1
        features.append(
            {
                "type": "Feature",
                "id": facts["chip_id"],
                "bbox": bbox,
                "geometry": {"type": "MultiPolygon" if cut else "Polygon", "coordinates": rings if cut else rings[0]},
                "properties": {"rank": rank, **facts},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def contact_sheet(
    query: dict[str, Any], hits: Sequence[dict[str, Any]], services: dict[str, Any], *, untrained: bool, path: Path
) -> dict[str, int]:
    """Draw the query, large, and its neighbours; returns how many pictures came from where.

    A picture that neither service nor source gives is a grey square that says so.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from kiln.explorer import pictures

    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    with ThreadPoolExecutor(8) as pool:
        shown = list(pool.map(lambda r: pictures.picture(r, services), [query, *hits]))
    origins = {o: sum(p.origin == o for p in shown) for o in ("wms", "source", "none")}
    lines = max(2, -(-len(hits) // COLUMNS))
    figure = Figure(figsize=(2.0 * (COLUMNS + 2) + 0.7, 2.32 * lines + 1.35), dpi=110, facecolor="#faf9f6")
    grid = figure.add_gridspec(
        lines, COLUMNS + 2, left=0.02, right=0.985, top=1 - 0.85 / figure.get_figheight(),
        bottom=0.5 / figure.get_figheight(), wspace=0.08, hspace=0.24,
    )  # fmt: skip
    ink, quiet = "#22262b", "#6b7280"
    for rank, (row, picture) in enumerate(zip([query, *hits], shown, strict=True)):
        r, c = divmod(rank - 1, COLUMNS)
        axes = figure.add_subplot(grid[:2, :2] if rank == 0 else grid[r, c + 2])
        if picture.pixels is None:
            axes.set_facecolor("#d9d9d6")
            axes.text(0.5, 0.5, "no picture", ha="center", va="center", color=quiet, transform=axes.transAxes)
        else:
            axes.imshow(picture.pixels, interpolation="lanczos" if rank == 0 else "antialiased")
        axes.set(xticks=[], yticks=[], anchor="N")
        for spine in axes.spines.values():
            spine.set(color="#c2410c" if rank == 0 else "#e4e2dc", linewidth=2.5 if rank == 0 else 0.8)
        place = f"{abs(row['lat']):.3f}°{'NS'[row['lat'] < 0]} {abs(row['lon']):.3f}°{'EW'[row['lon'] < 0]}"
        if rank == 0:
            axes.set_xlabel(f"{row['chip_id']}\n{place}, {row['year'] or 'no date'}", fontsize=9, color=ink, labelpad=7)
        else:
            axes.set_title(
                f"{rank}   {row['similarity']:.3f}", fontsize=9.5, color=ink, loc="left", pad=4, fontweight="bold"
            )
            axes.set_title(f"{row['year'] or ''}", fontsize=8, color=quiet, loc="right", pad=4)
            axes.set_xlabel(place, fontsize=7.5, color=quiet, labelpad=3)
    top = 1 - 0.36 / figure.get_figheight()
    figure.text(0.02, top, "Places like this one", fontsize=15, color=ink, fontweight="bold", va="center")
    if untrained:
        figure.text(
            0.985, top, "UNTRAINED weights: a demonstration", fontsize=10, color="#b91c1c", ha="right", va="center"
        )
    told = [
        f"{n} from {name}"
        for name, n in (("the image service", origins["wms"]), ("the chips' sources", origins["source"]))
        if n
    ]
    told += [f"{origins['none']} missing"] if origins["none"] else []
    foot = f"Cosine similarity of Clay class tokens. Pictures: {', '.join(told)}."
    figure.text(0.02, 0.17 / figure.get_figheight(), foot, fontsize=8, color=quiet, va="center")
    for why in sorted({p.why for p in shown if p.why and p.why != "no service configured"}):
        log.warning("picture: %s", why)
    figure.savefig(path, format="png", metadata={"Software": None})
    return origins


def empty_sheet(path: Path) -> None:
    """A picture that says that there is nothing to show."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2), dpi=110, facecolor="#faf9f6")
    figure.text(0.5, 0.5, "There is no chip in the database.", fontsize=14, color="#6b7280", ha="center", va="center")
    figure.savefig(path, format="png", metadata={"Software": None})


Found = tuple[dict[str, Any] | None, list[dict[str, Any]]]  # the query, None if there is none, and its results


def by_chip(db: Explorer, args: argparse.Namespace, services: dict[str, Any]) -> Found:
    """The chips most like one, by the database alone."""
    where = Filters(tuple(args.year), tuple(args.dataset), args.bbox)
    if args.chip:
        query = db.chip(args.chip)
    elif args.at:
        query = db.at(*args.at, where)
    else:
        where = replace(where, years=where.years or newest_year(db, where))
        query = example(db, where, args.k, services)
    return query, search(db, query, args.k, where) if query else []


def by_marks(db: Explorer, args: argparse.Namespace) -> Found:
    """The chips that the marks ask for, as the explorer finds them; the first like stands for the query."""
    query, matrix = marked(db, args)
    found = ranking.search(db, matrix, query, matrix.mask(query.where))
    if found.note:
        log.info("%s", found.note)
    told = results.facts(matrix, found.rows, found.scores)
    if args.parquet:
        vectors = matrix.vectors[found.rows] if args.embeddings else None
        with storage.atomic(args.parquet) as path:
            results.as_geoparquet(told, path, db.about, vectors)
        log.info("%s: %d chips", args.parquet, len(told))
    first = results.facts(matrix, matrix.rows_of(query.likes[:1]))[0]
    return row(first), [row(t) for t in told]


def main(argv: list[str] | None = None) -> None:
    """Search."""
    p = command_line.parser(__doc__, "kiln.cli.search")
    p.add_argument("--db", required=True, help="path or s3:// of the explorer database")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--chip", metavar="ID", help="chip_id to find the like of")
    what.add_argument("--at", type=degrees(2), metavar="LON,LAT", help="or the chip that covers this point")
    what.add_argument("--example", action="store_true", help="or a chip that makes a good example")
    p.add_argument(
        "--like", metavar="ID", action="append", default=[], help="and, or instead: a chip to find the like of"
    )
    p.add_argument(
        "--dislike", metavar="ID", action="append", default=[], help="a chip that the results shall not be like"
    )
    p.add_argument("--marks", metavar="FILE", help="likes and dislikes as the explorer saves them, GeoJSON")
    p.add_argument("--method", choices=ranking.METHODS, default="mean", help="how marks become a ranking")
    p.add_argument("--apart", type=float, default=0.0, metavar="KM", help="one result per neighbourhood")
    p.add_argument("-k", type=int, default=10, help="number of results")
    p.add_argument("--year", type=int, action="append", default=[], help="only of this year (may be repeated)")
    p.add_argument("--dataset", action="append", default=[], help="only of this dataset (may be repeated)")
    p.add_argument("--bbox", type=degrees(4), metavar="W,S,E,N", help="only with their centre in this box, degrees")
    p.add_argument("--area", metavar="FILE", help="only with their centre in this GeoJSON polygon")
    p.add_argument("--from", dest="first", metavar="DAY", help="only of this day or later")
    p.add_argument("--to", dest="last", metavar="DAY", help="only of this day or earlier")
    p.add_argument("--max-nodata", type=float, metavar="SHARE", help="only with so much nodata at most")
    p.add_argument("--max-cloud", type=float, metavar="SHARE", help="only with so much cloud at most, or no mask")
    p.add_argument("--parquet", metavar="FILE", help="also write the results as GeoParquet")
    p.add_argument("--embeddings", action="store_true", help="with their vectors")
    p.add_argument("--cache", type=Path, default=default_cache(), help="folder of the explorer's matrix")
    p.add_argument("--format", choices=("table", "json", "geojson"), default="table", help="of what is printed")
    p.add_argument("--png", metavar="FILE", help="also draw the chips' pictures into this file")
    p.add_argument("--pictures", default="{}", help="config file, or JSON of its `pictures`: the image services")
    args = p.parse_args(argv)
    if not any((args.chip, args.at, args.example, args.like, args.marks)):
        p.error("one of the arguments --chip --at --example --like --marks is required")
    named = ("like", "dislike", "marks", "apart", "area", "first", "last", "parquet")
    advanced = args.method != "mean" or any(getattr(args, n) for n in named)
    advanced |= args.max_nodata is not None or args.max_cloud is not None
    if args.example and advanced:
        p.error("--example goes with --year, --dataset and --bbox alone")
    if args.embeddings and not args.parquet:
        p.error("--embeddings wants --parquet FILE")

    def work() -> None:
        if args.k < 1:
            raise ConfigError(f"-k {args.k}: want at least 1")
        services = read_services(args.pictures)
        db = Explorer(args.db)
        if advanced:
            query, hits = by_marks(db, args)
        else:
            query, hits = by_chip(db, args, services)
        if query is None:
            if not args.png:
                raise ConfigError(f"{args.db}: no chip in it that the filters leave")
            log.warning("%s: no chip in it that the filters leave: an empty sheet", args.db)
            with storage.atomic(args.png) as path:
                empty_sheet(path)
            return
        if db.untrained:
            log.warning("UNTRAINED weights: these similarities are a demonstration")
        if args.format == "table":
            print(as_table(query, hits))
        else:
            value = as_json(query, hits) if args.format == "json" else as_geojson(query, hits)
            json.dump(value, sys.stdout, indent=1)
            print()
        if args.png:
            with storage.atomic(args.png) as path:
                origins = contact_sheet(query, hits, services, untrained=db.untrained, path=path)
            log.info("%s: %d pictures from the service, %d from sources, %d missing", args.png, *origins.values())

    command_line.run(work)


if __name__ == "__main__":
    main()
