"""Footprints of the chips of a result.

No search reads them, and the matrix does not hold them: they are read from the table for the final hits alone.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
import shapely.geometry

from kiln.explorer.chips import ChipFacts
from kiln.explorer.database import FOOTPRINT, ExplorerDatabase
from kiln.formats.bounding_box import BoundingBox

BOXES_ONLY = (
    "This database has boxes only, so results have boxes and not footprints. Rebuild the index for footprints: "
    "`snakemake index -R build_index`."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Footprints:
    """The geometries of some chips.

    Attributes:
        geometries: By chip_id, in degrees: what the product or the published file has. Polygons are anticlockwise, and
            cut at the antimeridian.
        kind: `exact`, or `box` for the boxes around the footprints, if the database has no footprints.
    """

    geometries: Mapping[str, shapely.Geometry]
    kind: Literal["exact", "box"]


def read_footprints(db: ExplorerDatabase, chips: Iterable[ChipFacts]) -> Footprints:
    """Return the footprints of chips; warn if the database has boxes only.

    Args:
        db: The database.
        chips: Some of its chips.

    Raises:
        UnknownChipError: The database does not have one of them.
        TransientError: The database does not answer.
    """
    boxes = {chip.chip_id: chip.bbox for chip in chips}
    if not db.has_footprints:
        log.warning("%s: %s", db.uri, BOXES_ONLY)
        return Footprints(
            {i: shapely.geometry.shape(BoundingBox(*box).to_geojson()) for i, box in boxes.items()}, "box"
        )
    if not boxes:
        return Footprints({}, "exact")
    rows = db.rows(list(boxes), ("chip_id", FOOTPRINT))
    shapes = shapely.from_wkb(np.array(rows[FOOTPRINT].to_pylist(), dtype=object))
    return Footprints(dict(zip(boxes, shapely.orient_polygons(shapes), strict=True)), "exact")
