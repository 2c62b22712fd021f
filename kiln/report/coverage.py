"""Draw what was embedded: a coverage map of the merged products, and their ledger as a page."""

import html
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.formats.ledger import read_ledger
from kiln.io import storage

log = logging.getLogger(__name__)
CELLS = 900  # of the map's longer side, at most: beyond, chips are drawn as density
ACROSS, WIDTH = 3, 5.2  # panels side by side, and inches of one
BESIDE, ABOUT = 0.95, 1.2  # inches that labels take of a panel: beside its map, and above and below it
MOST = 9  # products of a dataset with a panel each
INK, QUIET, FULL, SEA = "#22262b", "#6b7280", "#0f766e", "#eef2f4"


def boxes(record: dict[str, Any], product: str) -> np.ndarray:
    """[n, 5] of a product's chips: xmin, ymin, xmax, ymax, nodata_fraction.

    A chip over the antimeridian ends beyond 180: its xmax is that of the column and 360.
    """
    found = []
    for file in record["files"]:
        with storage.local_copy(storage.join(product, file["name"])) as path:
            rows = pq.read_table(path, columns=["bbox", "nodata_fraction"]).combine_chunks()
            box = rows["bbox"].combine_chunks()
            sides = [np.asarray(box.field(k)) for k in ("xmin", "ymin", "xmax", "ymax")]
            sides[2] = np.where(sides[0] > sides[2], sides[2] + 360, sides[2])
            found.append(np.stack([*sides, np.asarray(rows["nodata_fraction"])], axis=1))
    return np.concatenate(found)


def raster(chips: np.ndarray, bounds: tuple[float, float, float, float]) -> np.ndarray:
    """Share of each map cell [rows, cols] that chips cover, north up."""
    west, south, east, north = bounds
    cell = max(east - west, north - south) / CELLS
    cols, rows = max(1, round((east - west) / cell)), max(1, round((north - south) / cell))
    covered = np.zeros((rows, cols), np.float32)
    left, right = ((chips[:, i] - west) / cell for i in (0, 2))
    top, bottom = ((north - chips[:, i]) / cell for i in (3, 1))
    for x0, x1, y0, y1 in zip(left, right, top, bottom, strict=True):
        covered[
            max(0, round(y0)) : max(round(y0) + 1, round(y1)), max(0, round(x0)) : max(round(x0) + 1, round(x1))
        ] += 1
    return covered


def together(products: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Chips [n, 5] of a dataset, those west of Greenwich 360 degrees further east if that halves its map's width.

    So chips on both sides of the antimeridian lie side by side, and not on the two edges of the world.
    """
    if not sum(map(len, products)):
        return list(products)
    moved = [p + np.where(p[:, :1] < 0, [360, 0, 360, 0, 0], 0) for p in products]
    plain, other = (np.ptp(np.concatenate(some)[:, [0, 2]]) for some in (products, moved))
    return moved if other <= plain / 2 else list(products)


def frame(products: Sequence[np.ndarray]) -> tuple[float, float, float, float]:
    """West, south, east, north of a dataset's map: its chips [n, 5] and a margin; the world if there is none."""
    every = np.concatenate(products)
    if not len(every):
        return -180.0, -90.0, 180.0, 90.0
    pad = 0.04 * max(np.ptp(every[:, [0, 2]]), np.ptp(every[:, [1, 3]]))
    low, high = every[:, :2].min(axis=0) - pad, every[:, 2:4].max(axis=0) + pad
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def stretch(south: float, north: float) -> float:
    """Length of a degree of latitude over one of longitude in the middle of a map; bounded near the poles."""
    return 1 / max(math.cos(math.radians((south + north) / 2)), 0.1)


@dataclass(frozen=True)
class Panel:
    """A map of its own: a product, or all of a dataset that has many; chips [n, 5] as `boxes` gives them."""

    title: str
    chips: np.ndarray
    counts: dict[str, int]


def panels(records: Sequence[dict[str, Any]], chips: Sequence[np.ndarray]) -> dict[str, list[Panel]]:
    """What to draw, by dataset."""
    made: dict[str, list[Panel]] = {}
    for record, rows in zip(records, chips, strict=True):
        title = f"{record['dataset']} {record['partition']}"
        made.setdefault(record["dataset"], []).append(Panel(title, rows, record["counts"]))
    for name, group in made.items():
        if len(group) > MOST:
            counts = {c: sum(p.counts[c] for p in group) for c in group[0].counts}
            made[name] = [Panel(f"{name}, {len(group)} products", np.concatenate([p.chips for p in group]), counts)]
    return made


def tall(bounds: tuple[float, float, float, float]) -> float:
    """Inches of a panel's map."""
    west, south, east, north = bounds
    return (WIDTH - BESIDE) * min(max((north - south) / (east - west) * stretch(south, north), 0.35), 1.6)


def draw(axes: Any, panel: Panel, bounds: tuple[float, float, float, float]) -> None:
    """One panel: covered cells, outlines of chips where they are few, the ledger's counts below the title."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    rows, counts = panel.chips, panel.counts
    ramp = LinearSegmentedColormap.from_list("kiln", [SEA, "#99d5c9", FULL])
    covered = np.minimum(raster(rows, bounds), 1) if len(rows) else np.zeros((2, 2))
    axes.imshow(
        covered, extent=(bounds[0], bounds[2], bounds[1], bounds[3]), cmap=ramp, vmin=0, vmax=1,
        aspect=stretch(bounds[1], bounds[3]), interpolation="nearest",
    )  # fmt: skip
    if 0 < len(rows) <= 4000:
        outlines = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1, _ in rows]
        axes.add_collection(PatchCollection(outlines, facecolor="none", edgecolor="#faf9f6", linewidth=0.4))
    axes.set_title(panel.title, loc="left", color=INK, fontweight="bold", pad=24)
    said = f"{counts['embedded']:,} chips embedded, {counts['skipped_nodata']:,} nodata"
    said += f", {counts['skipped_cloud']:,} cloud" if counts["skipped_cloud"] else ""
    said += f", {counts['failed']:,} failed"
    axes.annotate(
        said, (0, 1), xytext=(0, 8), xycoords="axes fraction", textcoords="offset points", fontsize=9,
        color="#b91c1c" if counts["failed"] else QUIET,
    )  # fmt: skip
    axes.tick_params(colors=QUIET, labelsize=8, length=3)
    axes.locator_params(axis="x", nbins=5)
    if bounds[2] > 180:
        axes.xaxis.set_major_formatter(lambda x, at: f"{(x + 180) % 360 - 180:.6g}")
    axes.set_xlabel("longitude", fontsize=8, color=QUIET)
    axes.set_ylabel("latitude", fontsize=8, color=QUIET)
    for spine in axes.spines.values():
        spine.set_color("#d6d3cb")


def coverage_map(records: Sequence[dict[str, Any]], products: Sequence[str], path: Path) -> None:
    """One panel per product, those of a dataset in rows of their own and in one frame."""
    from matplotlib.figure import Figure

    maps = panels(records, [boxes(r, p) for r, p in zip(records, products, strict=True)])
    for group in maps.values():
        group[:] = [replace(m, chips=c) for m, c in zip(group, together([m.chips for m in group]), strict=True)]
    frames = {name: frame([m.chips for m in group]) for name, group in maps.items()}
    heights = [height for name, group in maps.items() for height in [tall(frames[name])] * -(-len(group) // ACROSS)]
    across = min(ACROSS, max(map(len, maps.values())))
    figure = Figure(
        figsize=(WIDTH * across, sum(h + ABOUT for h in heights)), dpi=110, facecolor="#faf9f6", layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    grid = figure.add_gridspec(len(heights), across, height_ratios=[h + ABOUT for h in heights])
    row = 0
    for name, group in maps.items():
        for at, panel in enumerate(group):
            draw(figure.add_subplot(grid[row + at // ACROSS, at % ACROSS], anchor="N"), panel, frames[name])
        row += -(-len(group) // ACROSS)
    notes = []
    if any(r["untrained"] for r in records):
        notes.append("UNTRAINED weights: a demonstration")
    if missing := sum(len(r["missing_shards"]) for r in records):
        notes.append(f"{missing} shards are missing")
    if notes:
        figure.supxlabel("  ·  ".join(notes), fontsize=10, color="#b91c1c")
    figure.savefig(path, format="png", metadata={"Software": None})


STYLE = """
:root { color-scheme: light dark; --ink: #22262b; --paper: #faf9f6; --line: #e0ddd5; --bad: #b91c1c; --quiet: #6b7280 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e5e7eb; --paper: #181a1d; --line: #33373d; --bad: #f87171; --quiet: #9ca3af } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100% }
th, td { text-align: left; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top }
td.n, th.n { text-align: right } .failed, .warn { color: var(--bad) } .empty { color: var(--quiet) }
caption { text-align: left; font-weight: 600; padding: .6rem 0 }
"""
LONGEST = 2000  # rows of a page's table; failed units come first


def ledger_page(records: Sequence[dict[str, Any]], products: Sequence[str]) -> str:
    """The ledgers as one HTML page: totals per product, then the units, failed ones first."""
    names = ("expected", "embedded", "skipped_nodata", "skipped_cloud", "failed")
    head = "".join(f'<th class="n" scope="col">{n.replace("_", " ")}</th>' for n in names)
    totals, units, ledgers = [], [], []
    for record, product in zip(records, products, strict=True):
        counts = "".join(f'<td class="n">{record["counts"][n]:,}</td>' for n in names)
        states = ", ".join(f"{n:,} {s}" for s, n in record["units"].items())
        totals.append(f"<tr><td>{record['dataset']} {record['partition']}</td>{counts}<td>{states}</td></tr>")
        with storage.local_copy(storage.join(product, "ledger.parquet")) as path:
            ledgers.append(read_ledger(path))
    every = pa.concat_tables(ledgers)
    every = every.append_column("bad", pc.equal(every["status"], "failed"))
    every = every.sort_by([("bad", "descending"), ("unit_id", "ascending")])
    for r in every.slice(0, LONGEST).to_pylist():
        cells = "".join(f'<td class="n">{r[n]:,}</td>' for n in names)
        why = html.escape("; ".join(filter(None, (r["reason"], r["notes"]))))
        unit, status = html.escape(r["unit_id"]), r["status"]
        units.append(f'<tr class="{status}"><td>{unit}</td>{cells}<td>{status}</td><td>{why}</td></tr>')
    left = max(0, len(every) - LONGEST)
    warn = "<p class=warn>UNTRAINED weights: a demonstration.</p>" if any(r["untrained"] for r in records) else ""
    missing = sum(len(r["missing_shards"]) for r in records)
    warn += f"<p class=warn>{missing} shards are missing in these products.</p>" if missing else ""
    more = f"<p>{left:,} more units are in the products' ledger.parquet.</p>" if left else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Ledger</title><style>{STYLE}</style>"
        f"<h1>What became of every unit</h1>{warn}<table><caption>Products</caption>"
        f"<tr><th scope=col>product</th>{head}<th scope=col>units</th></tr>{''.join(totals)}</table>"
        f"<table><caption>Units</caption><tr><th scope=col>unit</th>{head}<th scope=col>status</th>"
        f"<th scope=col>reason</th></tr>{''.join(units)}</table>{more}</html>\n"
    )


def main(argv: list[str] | None = None) -> None:
    """Draw the map and write the page."""
    p = command_line.parser(__doc__, "kiln.report.coverage")
    p.add_argument("--records", nargs="+", required=True, help="records of the products")
    p.add_argument("--products", nargs="+", help="their folders, path or s3://, if not the records' names less .json")
    p.add_argument("--map", required=True, help="PNG to draw")
    p.add_argument("--ledger", required=True, help="HTML page to write")
    args = p.parse_args(argv)

    def work() -> None:
        products = args.products or [r.removesuffix(".json") for r in args.records]
        if len(products) != len(args.records):
            raise ConfigError(f"{len(args.records)} records, but {len(products)} products")
        records = [json.loads(storage.read_bytes(r)) for r in args.records]
        with storage.atomic(args.map) as path:
            coverage_map(records, products, path)
        storage.write_bytes(args.ledger, ledger_page(records, products).encode())

    command_line.run(work)


if __name__ == "__main__":
    main()
