"""Batches: chips of a source, collected across files and units until the encoder's batch is full."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass

from kiln.formats.records import Chip, Dropped, Opened

MAX_UNREPORTED = 1024  # chips dropped without a report, even if no batch is full


@dataclass
class Batch:
    """Chips to encode together, and the reports of dropped chips and opened units that came between them."""

    chips: list[Chip]
    reports: list[Dropped | Opened]


def make_batches(
    events: Generator[Chip | Dropped | Opened, None, None], size: int, *, one_gsd: bool = False
) -> Generator[Batch, None, None]:
    """Yield full batches across files and units, in the order of the chips.

    Long stretches without a chip are reported as they come.

    Args:
        events: Chips and reports of a source. The generator is closed at the end.
        size: Chips of a full batch.
        one_gsd: Whether a batch holds chips of one pixel size only.
    """
    chips: list[Chip] = []
    reports: list[Dropped | Opened] = []
    with closing(events):
        for event in events:
            if isinstance(event, Chip):
                if one_gsd and chips and chips[-1].pixel_size != event.pixel_size:
                    yield Batch(chips, reports)
                    chips, reports = [], []
                chips.append(event)
            else:
                reports.append(event)
            if len(chips) == size:
                yield Batch(chips, reports)
                chips, reports = [], []
            elif len(reports) >= MAX_UNREPORTED:
                yield Batch([], reports)
                reports = []
    if chips or reports:
        yield Batch(chips, reports)
