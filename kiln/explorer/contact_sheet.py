"""The contact sheet: a picture of a chip and the chips most like it, and the choice of an example to show."""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import yaml

from kiln.errors import ConfigError
from kiln.explorer import pictures
from kiln.explorer.api import Explorer
from kiln.explorer.chips import ChipFacts, Hit
from kiln.explorer.filters import EVERY_CHIP, ChipFilter
from kiln.explorer.matrix import BOX
from kiln.explorer.search import MAX_RESULTS, Query, SearchResult
from kiln.io import storage

COLUMNS = 5  # of results
MAX_CANDIDATES, CANDIDATES_FROM = 48, 5000  # chips tried as example, spread over the first chips of the table
MAX_VIEWED = 8  # best candidates whose pictures are compared
SPREAD = 8  # a candidate's similarity at rank k is compared with that at this times k
PICTURE_THREADS = 8
DPI = 110
BACKGROUND, MISSING, INK, QUIET, ACCENT, RULE = "#faf9f6", "#d9d9d6", "#22262b", "#6b7280", "#c2410c", "#e4e2dc"
WARNING = "#b91c1c"
log = logging.getLogger(__name__)


def read_services(text: str) -> dict[str, Any]:
    """Return the image services of the config.

    Args:
        text: JSON of the config's `pictures`, or the path of a config file.

    Raises:
        ConfigError: It is neither.
    """
    try:
        if text.endswith((".yaml", ".yml")):
            services = yaml.safe_load(Path(text).read_text()).get("pictures") or {}
        else:
            services = json.loads(text)
    except (ValueError, OSError, AttributeError, yaml.YAMLError) as e:
        raise ConfigError(f"--pictures: expected JSON or a config file, got {text} ({e}).") from e
    if not isinstance(services, dict):
        raise ConfigError(f"--pictures: expected a JSON object, got {text}.")
    return services


def find_example(
    explorer: Explorer, k: int, services: Mapping[str, Any], chip_filter: ChipFilter = EVERY_CHIP
) -> SearchResult | None:
    """Return the search for a chip that makes a good example; None: the filters leave no chip.

    Without a filter of years it is of the newest year: an example of one year shows a place once.
    """
    if not chip_filter.years:
        newest = pc.max(explorer.database.column("year", chip_filter)).as_py()
        chip_filter = replace(chip_filter, years=() if newest is None else (newest,))
    chip = choose_example(explorer, k, services, chip_filter)
    return None if chip is None else explorer.find(Query(likes=(chip.chip_id,), k=k, chip_filter=chip_filter))


def choose_example(
    explorer: Explorer, k: int, services: Mapping[str, Any], chip_filter: ChipFilter = EVERY_CHIP
) -> ChipFacts | None:
    """Return a chip whose picture shows something and whose neighbours stand out.

    Of the chips whose k neighbours stand out most from the rest, it has the picture with the most detail: open sea
    stands out too, and shows nothing.

    Args:
        explorer: The database.
        k: Number of neighbours.
        services: The config's `pictures`: by dataset, its image service.
        chip_filter: Conditions of the chip and its neighbours, without an area.

    Returns:
        The chip; None: the filters leave no chip.
    """
    ids = sorted(explorer.database.column("chip_id", chip_filter, CANDIDATES_FROM).to_pylist())
    candidates: list[tuple[float, ChipFacts]] = []
    for chip_id in ids[:: max(1, len(ids) // MAX_CANDIDATES)]:
        query = Query(likes=(chip_id,), k=min(max(1, SPREAD * k - 1), MAX_RESULTS), chip_filter=chip_filter)
        result = explorer.find(query)
        similarities = [hit.similarity for hit in result.hits] or [1.0]
        candidates.append((similarities[min(k, len(similarities)) - 1] - similarities[-1], result.reference))
    best = [chip for _, chip in sorted(candidates, key=lambda c: -c[0])[:MAX_VIEWED]]
    with ThreadPoolExecutor(MAX_VIEWED) as pool:
        detail = list(pool.map(lambda chip: pictures.picture(_row(chip), services).detail, best))
    return best[detail.index(max(detail))] if best else None


def write_contact_sheet(
    path: str, result: SearchResult | None, services: Mapping[str, Any], *, untrained: bool
) -> None:
    """Write the contact sheet of a search as PNG, atomically; without a result it says that there is no chip."""
    with storage.atomic(path) as partial:
        if result is None:
            log.warning("%s: the filters leave no chip: an empty sheet", path)
            draw_empty_sheet(partial)
            return
        origins = draw_contact_sheet(result.reference, result.hits, services, untrained=untrained, path=partial)
    log.info("%s: %d pictures from the service, %d from sources, %d missing", path, *origins.values())


def draw_contact_sheet(
    reference: ChipFacts, hits: Sequence[Hit], services: Mapping[str, Any], *, untrained: bool, path: Path
) -> dict[str, int]:
    """Draw a chip, large, and its neighbours. A chip without a picture is a grey square with a note.

    Args:
        reference: The chip.
        hits: Its neighbours, best first.
        services: The config's `pictures`: by dataset, its image service.
        untrained: Whether the sheet warns of random weights.
        path: The PNG file.

    Returns:
        Numbers of pictures by origin: `wms`, `source`, `none`.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    chips = [reference, *(hit.chip for hit in hits)]
    with ThreadPoolExecutor(PICTURE_THREADS) as pool:
        shown = list(pool.map(lambda chip: pictures.picture(_row(chip), services), chips))
    origins = {o: sum(p.origin == o for p in shown) for o in ("wms", "source", "none")}
    lines = max(2, -(-len(hits) // COLUMNS))
    figure = Figure(figsize=(2.0 * (COLUMNS + 2) + 0.7, 2.32 * lines + 1.35), dpi=DPI, facecolor=BACKGROUND)
    height = figure.get_figheight()
    grid = figure.add_gridspec(
        lines, COLUMNS + 2, left=0.02, right=0.985, top=1 - 0.85 / height, bottom=0.5 / height, wspace=0.08, hspace=0.24
    )
    for rank, (chip, picture) in enumerate(zip(chips, shown, strict=True)):
        row, column = divmod(rank - 1, COLUMNS)
        axes = figure.add_subplot(grid[:2, :2] if rank == 0 else grid[row, column + 2])
        if picture.pixels is None:
            axes.set_facecolor(MISSING)
            axes.text(0.5, 0.5, "no picture", ha="center", va="center", color=QUIET, transform=axes.transAxes)
        else:
            axes.imshow(picture.pixels, interpolation="lanczos" if rank == 0 else "antialiased")
        axes.set(xticks=[], yticks=[], anchor="N")
        for spine in axes.spines.values():
            spine.set(color=ACCENT if rank == 0 else RULE, linewidth=2.5 if rank == 0 else 0.8)
        place = f"{abs(chip.lat):.3f}°{'NS'[chip.lat < 0]} {abs(chip.lon):.3f}°{'EW'[chip.lon < 0]}"
        if rank == 0:
            axes.set_xlabel(f"{chip.chip_id}\n{place}, {chip.year or 'no date'}", fontsize=9, color=INK, labelpad=7)
        else:
            similarity = f"{rank}   {hits[rank - 1].similarity:.3f}"
            axes.set_title(similarity, fontsize=9.5, color=INK, loc="left", pad=4, fontweight="bold")
            axes.set_title(f"{chip.year or ''}", fontsize=8, color=QUIET, loc="right", pad=4)
            axes.set_xlabel(place, fontsize=7.5, color=QUIET, labelpad=3)
    top = 1 - 0.36 / height
    figure.text(0.02, top, "Places like this one", fontsize=15, color=INK, fontweight="bold", va="center")
    if untrained:
        warning = "UNTRAINED weights: a demonstration"
        figure.text(0.985, top, warning, fontsize=10, color=WARNING, ha="right", va="center")
    figure.text(0.02, 0.17 / height, _footnote(origins), fontsize=8, color=QUIET, va="center")
    for why in sorted({p.why for p in shown if p.why and p.why != "no service configured"}):
        log.warning("picture: %s", why)
    figure.savefig(path, format="png", metadata={"Software": None})
    return origins


def _footnote(origins: Mapping[str, int]) -> str:
    names = {"wms": "the image service", "source": "the chips' sources"}
    parts = [f"{origins[o]} from {name}" for o, name in names.items() if origins[o]]
    parts += [f"{origins['none']} missing"] if origins["none"] else []
    return f"Cosine similarity of Clay class tokens. Pictures: {', '.join(parts)}."


def draw_empty_sheet(path: Path) -> None:
    """Draw a PNG with the text that there is no chip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2), dpi=DPI, facecolor=BACKGROUND)
    figure.text(0.5, 0.5, "There is no chip in the database.", fontsize=14, color=QUIET, ha="center", va="center")
    figure.savefig(path, format="png", metadata={"Software": None})


def _row(chip: ChipFacts) -> dict[str, Any]:
    """Return what `pictures.picture` reads of a row."""
    return {"dataset": chip.dataset, "source": chip.source, **dict(zip(BOX, chip.bbox, strict=True))}
