"""The plan of NAIP: the scenes of the bucket's manifest that are embedded, in shards of one state and year each.

The manifest is read as a stream. Of several releases of a scene the newest is planned. A shard hardly changes when the
manifest grows. Every line that is no scene is counted by kind; every line that looks like a scene and is none is
listed.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from kiln.archives.key_list import PLAIN_NAME, cut_off, cut_off_error, open_lines, report_kinds, report_lines
from kiln.archives.naip import ARCHIVE
from kiln.archives.naip.chip_counts import ChipCounts
from kiln.archives.naip.config import Config
from kiln.archives.naip.keys import SceneKey, parse_key
from kiln.archives.stable_shards import stable_shards
from kiln.errors import ConfigError
from kiln.formats.bounding_box import BoundingBox, check_bounding_box
from kiln.formats.plan_file import ShardPlan

MAX_KEY_CHARS = 1024
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SceneFilter:
    """A filter on scenes. Every field that is set must match; `bbox` must meet the scene's bounds."""

    states: frozenset[str] = frozenset()
    years: frozenset[int] = frozenset()
    resolutions_cm: frozenset[int] = frozenset()
    bbox: BoundingBox | None = None

    def matches(self, scene: SceneKey) -> bool:
        """Return whether a scene passes."""
        if (self.states and scene.state not in self.states) or (self.years and scene.year not in self.years):
            return False
        if self.resolutions_cm and scene.cm not in self.resolutions_cm:
            return False
        if self.bbox is None:
            return True
        west, south, east, north = scene.bounds
        return west <= self.bbox[2] and east >= self.bbox[0] and south <= self.bbox[3] and north >= self.bbox[1]


@dataclass
class ManifestCounts:
    """The counts of a manifest's lines.

    Attributes:
        lines: All of them.
        scenes: Lines that are scenes.
        selected: Scenes that are planned.
        filtered: Scenes that do not pass the filter.
        superseded: Scenes of which there is a newer release, or a copy in another folder.
        duplicates: Scenes that are listed again.
        undated: Planned scenes without a date.
        next_year: Planned scenes that were acquired in the year after their path's.
        others: Numbers of other lines, by kind.
        unreadable: Keys that look like scenes and are none.
        cut_off: The last line if it is incomplete: without an end of line, and of a kind that no other line has.
    """

    lines: int = 0
    scenes: int = 0
    selected: int = 0
    filtered: int = 0
    superseded: int = 0
    duplicates: int = 0
    undated: int = 0
    next_year: int = 0
    others: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    cut_off: str = ""


PlannedScene = tuple[str, int, int]  # key, chips at most, and bytes by estimate


def plan_shards(config: Config) -> Iterator[ShardPlan]:
    """Yield the shards of the scenes that the config selects.

    Args:
        config: The archive's section of the config.

    Yields:
        The shards, partition by partition.

    Raises:
        ConfigError: If the manifest cannot be read, is cut off or holds no scene, or the filters leave none.
        TransientError: If the manifest's store is busy.
    """
    bbox = check_bounding_box(config.bbox, may_cross_antimeridian=False) if config.bbox is not None else None
    scene_filter = SceneFilter(frozenset(config.states), frozenset(config.years), frozenset(config.resolutions), bbox)
    with open_lines(config.manifest, "manifest") as lines:
        chips = ChipCounts(config.chip_size, config.lattice, config.lattice_gsd, config.edge)
        partitions, counts = read_scenes(lines, scene_filter, chips)
    log.info("%s", report(counts))
    where = f"manifest {config.manifest}"
    if not counts.scenes:
        raise ConfigError(f"{where}: expected keys of NAIP scenes, got none in {counts.lines:,} lines. Check the file.")
    if counts.cut_off:
        raise cut_off_error(where, counts.cut_off, "neither a scene nor of the kind of another line")
    if not counts.selected:
        raise ConfigError(
            f"{where}: the filters leave none of {counts.scenes:,} scenes. Check states, years, resolutions and bbox."
        )
    yield from shard_plans(partitions, config.archive, config.scenes_per_shard, config.chip_size)


def read_scenes(
    lines: Iterable[str], scene_filter: SceneFilter, chips: ChipCounts
) -> tuple[dict[str, list[PlannedScene]], ManifestCounts]:
    """Select the scenes of a manifest.

    Args:
        lines: The manifest's lines.
        scene_filter: The filter on scenes.
        chips: Counts the chips of a scene.

    Returns:
        The scenes by partition, and the counts of all lines.
    """
    counts = ManifestCounts()
    line, scene = "", None
    newest: dict[str, dict[str, tuple[tuple[str, bool], PlannedScene]]] = {}  # partition -> scene -> rank, planned
    for line in lines:
        counts.lines += 1
        key = line.strip()
        scene = parse_key(key) if len(key) <= MAX_KEY_CHARS else None
        if scene is None:
            if "/rgbir_cog/" in key and key.endswith(".tif") and len(key) <= MAX_KEY_CHARS:
                counts.unreadable.append(key)
            else:
                counts.others[kind_of_line(key)] += 1
            continue
        counts.scenes += 1
        if not scene_filter.matches(scene):
            counts.filtered += 1
            continue
        siblings, name = newest.setdefault(scene.partition, {}), scene.scene
        known = siblings.get(name)
        rank = (scene.released, scene.is_in_own_block)
        if known is None or rank > known[0] or (rank == known[0] and key < known[1][0]):
            siblings[name] = (rank, (key, chips.at_most(scene), scene.pixel_bytes))
        if known is not None:
            counts.duplicates += known[1][0] == key
            counts.superseded += known[1][0] != key
            continue
        counts.selected += 1
        counts.undated += not scene.acquired
        counts.next_year += scene.acquired[:4] == str(scene.year + 1)
    if cut_off(line) and scene is None and not _has_kind_of_others(line.strip(), counts):
        counts.cut_off = line
    return {p: [planned for _, planned in scenes.values()] for p, scenes in newest.items()}, counts


def _has_kind_of_others(key: str, counts: ManifestCounts) -> bool:
    """Return whether a key that is no scene is complete: with the extension of another key of its product."""
    kind = kind_of_line(key)
    return key in counts.unreadable or (" ." in kind and counts.others[kind] > 1)


def kind_of_line(key: str) -> str:
    """Return the kind of a line that is no scene: the folder of its product and its extension."""
    if len(key) > MAX_KEY_CHARS:
        return "overlong line"
    parts = key.split("/")
    if not key:
        return "empty line"
    if len(parts) < 4 or not PLAIN_NAME.fullmatch(parts[3]) or not PLAIN_NAME.fullmatch(parts[-1]):
        return "no key of the archive"
    return f"{parts[3]} .{key.rpartition('.')[2]}" if "." in parts[-1] else f"{parts[3]} without extension"


def shard_plans(
    partitions: dict[str, list[PlannedScene]], archive: str, scenes_per_shard: int, chip_size: int
) -> Iterator[ShardPlan]:
    """Yield the shards, partition by partition; `expected` chips, at most, and `read_bytes` follow from the keys."""
    for partition in sorted(partitions):
        sizes = {key: (chips, size) for key, chips, size in partitions[partition]}
        for name, keys in stable_shards(sizes, scenes_per_shard):
            yield ShardPlan(
                dataset=ARCHIVE.name,
                partition=partition,
                name=name,
                units=tuple(keys),
                chip_size=chip_size,
                expected=sum(sizes[k][0] for k in keys),
                read_bytes=sum(sizes[k][1] for k in keys),
                archive=archive,
            )


def report(counts: ManifestCounts) -> str:
    """Return the counts as text."""
    lines = [
        f"{counts.lines:,} lines: {counts.scenes:,} scenes, {counts.selected:,} selected, {counts.filtered:,} filtered "
        f"out, {counts.superseded:,} older releases, {counts.duplicates:,} duplicates",
        f"of the selected, {counts.undated:,} have no date, {counts.next_year:,} a date of the year after the path's",
        *report_kinds(counts.others),
        *report_lines("not a scene", counts.unreadable),
    ]
    return "\n".join(lines)
