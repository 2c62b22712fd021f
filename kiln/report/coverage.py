"""The coverage map: the chips of merged products, one panel per product."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kiln.formats.bounding_box import Bounds
from kiln.formats.parquet import read_table
from kiln.io import storage
from kiln.product.record import ProductRecord, check_part, merge_again

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_CELLS = 900  # of the map's longer side; smaller chips are drawn as density
MAX_OUTLINES = 4000  # chips of a map that are drawn with outlines
MAX_PANELS = 9  # products of a dataset that have a panel each; more share one
PANELS_PER_ROW, PANEL_INCHES = 3, 5.2
LABEL_WIDTH_INCHES, LABEL_HEIGHT_INCHES = 0.95, 1.2  # of a panel, left of its map, and above and below it
MIN_ASPECT, MAX_ASPECT = 0.35, 1.6  # height over width of a map
MARGIN = 0.04  # of a map's longer side
INK, QUIET, FULL, SEA = "#22262b", "#6b7280", "#0f766e", "#eef2f4"
PAPER, LINE, WARNING = "#faf9f6", "#d6d3cb", "#b91c1c"

Boxes = NDArray[np.float64]  # [n, 4] of chips: xmin, ymin, xmax, ymax in degrees


@dataclass(frozen=True)
class Panel:
    """A map: of a product, or of all products of a dataset that has many."""

    title: str
    boxes: Boxes
    counts: Mapping[str, int]


def read_boxes(record: ProductRecord, product: str) -> Boxes:
    """Return the bounding boxes [n, 4] of a product's chips.

    A chip over the antimeridian ends beyond 180 degrees: its xmax is that of the file plus 360.

    Args:
        record: Record of the product.
        product: Its folder, path or s3://.

    Raises:
        SourceError: If a file is missing or damaged.
    """
    boxes = []
    for file in record.files:
        uri = storage.join(product, file.name)
        with storage.local_copy(uri) as path:
            column = read_table(path, uri, merge_again(product), columns=["bbox"])["bbox"].combine_chunks()
            check_part(product, file, path.stat().st_size, len(column))
            xmin, ymin, xmax, ymax = (np.asarray(column.field(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
            boxes.append(np.stack([xmin, ymin, np.where(xmin > xmax, xmax + 360, xmax), ymax], axis=1))
    return np.concatenate(boxes)


def coverage_raster(boxes: Boxes, bounds: Bounds) -> NDArray[np.float32]:
    """Return how many chips cover each cell [rows, cols] of a map, north up; a chip covers at least one cell."""
    west, south, east, north = bounds
    cell = max(east - west, north - south) / MAX_CELLS
    cols, rows = max(1, round((east - west) / cell)), max(1, round((north - south) / cell))
    covered = np.zeros((rows, cols), np.float32)
    left, right = ((boxes[:, i] - west) / cell for i in (0, 2))
    top, bottom = ((north - boxes[:, i]) / cell for i in (3, 1))
    for x0, x1, y0, y1 in zip(left, right, top, bottom, strict=True):
        covered[
            max(0, round(y0)) : max(round(y0) + 1, round(y1)), max(0, round(x0)) : max(round(x0) + 1, round(x1))
        ] += 1
    return covered


def join_over_antimeridian(products: Sequence[Boxes]) -> list[Boxes]:
    """Return a dataset's boxes, those west of Greenwich 360 degrees further east if that halves its map's width.

    Chips on both sides of the antimeridian then lie side by side, not on the two edges of the world.
    """
    if not sum(map(len, products)):
        return list(products)
    shifted = [boxes + np.where(boxes[:, :1] < 0, [360, 0, 360, 0], 0) for boxes in products]
    width, shifted_width = (np.ptp(np.concatenate(some)[:, [0, 2]]) for some in (products, shifted))
    return shifted if shifted_width <= width / 2 else list(products)


def map_bounds(products: Sequence[Boxes]) -> Bounds:
    """Return the bounds of a dataset's map: its chips and a margin, or the world without a chip."""
    boxes = np.concatenate(products)
    if not len(boxes):
        return -180.0, -90.0, 180.0, 90.0
    margin = MARGIN * max(np.ptp(boxes[:, [0, 2]]), np.ptp(boxes[:, [1, 3]]))
    low, high = boxes[:, :2].min(axis=0) - margin, boxes[:, 2:4].max(axis=0) + margin
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def draw_coverage(records: Sequence[ProductRecord], products: Sequence[str], path: Path) -> None:
    """Draw the map as a PNG: a panel per product, the datasets in rows of their own and each in one frame.

    Args:
        records: Records of the products.
        products: Their folders, paths or s3://.
        path: Local file to write.

    Raises:
        SourceError: If a file of a product is missing or damaged.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(records, [read_boxes(r, p) for r, p in zip(records, products, strict=True)])
    bounds = {name: map_bounds([panel.boxes for panel in group]) for name, group in panels.items()}
    row_counts = {name: -(-len(group) // PANELS_PER_ROW) for name, group in panels.items()}
    heights = [_map_inches(bounds[name]) for name, count in row_counts.items() for _ in range(count)]
    across = min(PANELS_PER_ROW, max(map(len, panels.values())))
    figure = Figure(
        figsize=(PANEL_INCHES * across, sum(height + LABEL_HEIGHT_INCHES for height in heights)),
        dpi=110,
        facecolor=PAPER,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12),
    )
    grid = figure.add_gridspec(len(heights), across, height_ratios=[height + LABEL_HEIGHT_INCHES for height in heights])
    row = 0
    for name, group in panels.items():
        for number, panel in enumerate(group):
            place = grid[row + number // PANELS_PER_ROW, number % PANELS_PER_ROW]
            draw_panel(figure.add_subplot(place, anchor="N"), panel, bounds[name])
        row += row_counts[name]
    notes = []
    if any(record.untrained for record in records):
        notes.append("UNTRAINED weights: a demonstration")
    if missing := sum(len(record.missing_shards) for record in records):
        notes.append(f"{missing} shards are missing")
    if notes:
        figure.supxlabel("  ·  ".join(notes), fontsize=10, color=WARNING)
    figure.savefig(path, format="png", metadata={"Software": None})


def draw_panel(axes: "Axes", panel: Panel, bounds: Bounds) -> None:
    """Draw one map: covered cells, outlines of chips where they are few, the ledger's counts below the title."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    boxes, counts = panel.boxes, panel.counts
    west, south, east, north = bounds
    covered = np.minimum(coverage_raster(boxes, bounds), 1) if len(boxes) else np.zeros((2, 2), np.float32)
    axes.imshow(
        covered,
        extent=(west, east, south, north),
        cmap=LinearSegmentedColormap.from_list("kiln", [SEA, "#99d5c9", FULL]),
        vmin=0,
        vmax=1,
        aspect=_degree_aspect(south, north),
        interpolation="nearest",
    )
    if 0 < len(boxes) <= MAX_OUTLINES:
        outlines = [Rectangle((x0, y0), x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]
        axes.add_collection(PatchCollection(outlines, facecolor="none", edgecolor=PAPER, linewidth=0.4))
    axes.set_title(panel.title, loc="left", color=INK, fontweight="bold", pad=24)
    text = f"{counts['embedded']:,} chips embedded, {counts['skipped_nodata']:,} nodata"
    text += f", {counts['skipped_cloud']:,} cloud" if counts["skipped_cloud"] else ""
    text += f", {counts['deduplicated']:,} deduplicated" if counts["deduplicated"] else ""
    text += f", {counts['failed']:,} failed"
    axes.annotate(
        text,
        (0, 1),
        xytext=(0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=9,
        color=WARNING if counts["failed"] else QUIET,
    )
    axes.tick_params(colors=QUIET, labelsize=8, length=3)
    axes.locator_params(axis="x", nbins=5)
    if east > 180:
        axes.xaxis.set_major_formatter(lambda x, position: f"{(x + 180) % 360 - 180:.6g}")
    axes.set_xlabel("longitude", fontsize=8, color=QUIET)
    axes.set_ylabel("latitude", fontsize=8, color=QUIET)
    for spine in axes.spines.values():
        spine.set_color(LINE)


def _panels(records: Sequence[ProductRecord], boxes: Sequence[Boxes]) -> dict[str, list[Panel]]:
    """Return the maps to draw, by dataset."""
    panels: dict[str, list[Panel]] = {}
    for record, own in zip(records, boxes, strict=True):
        panels.setdefault(record.dataset, []).append(Panel(record.title, own, record.counts))
    for name, group in panels.items():
        if len(group) > MAX_PANELS:
            counts = {key: sum(panel.counts[key] for panel in group) for key in group[0].counts}
            every = np.concatenate([panel.boxes for panel in group])
            group[:] = [Panel(f"{name}, {len(group)} products", every, counts)]
        joined = join_over_antimeridian([panel.boxes for panel in group])
        group[:] = [replace(panel, boxes=own) for panel, own in zip(group, joined, strict=True)]
    return panels


def _degree_aspect(south: float, north: float) -> float:
    """Return the length of a degree of latitude over one of longitude in a map's middle; bounded near the poles."""
    return 1 / max(math.cos(math.radians((south + north) / 2)), 0.1)


def _map_inches(bounds: Bounds) -> float:
    """Return the height of a panel's map in inches."""
    west, south, east, north = bounds
    aspect = (north - south) / (east - west) * _degree_aspect(south, north)
    return (PANEL_INCHES - LABEL_WIDTH_INCHES) * min(max(aspect, MIN_ASPECT), MAX_ASPECT)
