"""Sources of the Sentinel-2 items that `tests.support.items` writes, and their events."""

import itertools
from collections import Counter

import numpy as np

from kiln.archives.sentinel2.assets import Candidate
from kiln.archives.sentinel2.source import Sentinel2Source
from kiln.engine.read_ahead import read_ahead
from kiln.formats.records import Chip, Dropped, Opened
from tests.support.items import BUCKET, WrittenItem

CHIP_SIZE = 16
OTHER_NAME = "S2B_29RKH_20200224_0_L2A"
BASELINE_04 = {"s2:processing_baseline": "04.00"}
OFFSET_FLAG = "earthsearch:boa_offset_applied"


def make_source(root, *written, chip=CHIP_SIZE, max_nodata=0.05, max_cloud=0.5, **more):
    more = {"rewrite": [(BUCKET, str(root))]} | more
    entries = [m.entry if isinstance(m, WrittenItem) else m for m in written]
    return Sentinel2Source(
        [Candidate(e["id"], e["href"]) for e in entries], chip=chip, max_nodata=max_nodata, max_cloud=max_cloud, **more
    )


def read_events(source, threads=2):
    """Check a source and return all its events. The counts of every unit add up."""
    source.check()
    events = list(source.chips(read_ahead(source.reads(), threads, 1 << 30)))
    opened = {e.unit_id: e.expected for e in events if isinstance(e, Opened)}
    counts = Counter()
    for e in events:
        counts[e.unit_id] += e.count if isinstance(e, Dropped) else isinstance(e, Chip)
    for unit in source.units():
        assert counts[unit.unit_id] == opened.get(unit.unit_id, unit.expected)
    order = [k for k, _ in itertools.groupby(e.unit_id for e in events)]
    assert order == [u.unit_id for u in source.units()]
    return events


def read_chips(source):
    return [e for e in read_events(source) if isinstance(e, Chip)]


def read_dropped(source):
    return [(e.kind, e.count, e.reason) for e in read_events(source) if isinstance(e, Dropped)]


def read_notes(source):
    return next(e.notes for e in read_events(source) if isinstance(e, Opened))


def only_reason(source):
    """Return the reason why the only item failed; there is no other event."""
    (event,) = read_events(source)
    assert (type(event), event.kind) == (Dropped, "failed")
    return event.reason


def chip_area(chip, array):
    """Return the area of a chip in an array [..., rows, cols]."""
    y, x = chip.row * CHIP_SIZE, chip.col * CHIP_SIZE
    return array[..., y : y + CHIP_SIZE, x : x + CHIP_SIZE]


def comparable(chip):
    """Return all fields of a chip except the addresses of its scene."""
    names = [n for n in Chip.__dataclass_fields__ if n not in ("pixels", "source", "sources")]
    return [getattr(chip, n) for n in names] + [chip.pixels.tobytes()]


def scl_mask(side=32, fill=5):
    return np.full((side, side), fill, np.uint8)
