"""Explorer databases written row by row, for cases that products do not have.

Examples are several models, chips at the antimeridian, and unusual values in the columns.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import shapely

from kiln.explorer import database
from kiln.explorer.filters import EVERY_CHIP, ChipFilter
from kiln.formats.bounding_box import BoundingBox

KILN = {"model": "Clay v1.5", "weights_sha256": "a5" * 32, "embedding": "class", "untrained": False}


def chip(n: int, lon: float, lat: float, vector: Sequence[float], **facts: Any) -> dict[str, Any]:
    """Return a row: a box of 0.04 degrees around a point."""
    west, east = ((v + 180) % 360 - 180 for v in (lon - 0.02, lon + 0.02))
    return {
        "chip_id": f"test:{n:05d}",
        "vector": list(vector),
        "dataset": "worldcover",
        "year": 2021,
        "datetime": datetime(2021, 6, 1, tzinfo=UTC),
        "item_id": "tile",
        "source": "tile.tif",
        "nodata_fraction": 0.0,
        "cloud_fraction": None,
        "lon": lon,
        "lat": lat,
        "xmin": west,
        "ymin": lat - 0.02,
        "xmax": east,
        "ymax": lat + 0.02,
        "cell": database.cells(np.array([lon]), np.array([lat]))[0],
        "geometry": shapely.to_wkb(
            shapely.geometry.shape(BoundingBox(west, lat - 0.02, east, lat + 0.02).to_geojson())
        ),
        **facts,
    }


def write(
    db: Path,
    rows: Sequence[dict[str, Any]],
    about: dict[str, Any] | None = None,
    dim: int = 4,
    *,
    footprints: bool = True,
) -> str:
    """Write the rows as a tagged table and return its path. A second call writes the next version.

    Without footprints the table is like those of Kiln 0.2.
    """
    datasets = about if about is not None else {"worldcover": KILN | {"dimensions": dim}}
    schema = database.chips_schema(dim, datasets)
    if not footprints:
        schema = schema.remove(schema.get_field_index("geometry"))
    values = [r | {"vector": np.asarray(r["vector"], np.float16)} for r in rows]
    table = database.connect(str(db)).create_table(
        database.TABLE, pa.Table.from_pylist(values, schema=schema), schema=schema, mode="overwrite"
    )
    tags = table.tags
    (tags.update if database.TAG in tags.list() else tags.create)(database.TAG, table.version)
    (db / "state").mkdir(exist_ok=True)
    (db / "state" / f"{table.version}.json").write_text(json.dumps({"rows": len(rows), "first": str(values[:1])}))
    return str(db)


def similar(
    db: database.ExplorerDatabase,
    vector: Any,
    k: int,
    chip_filter: ChipFilter = EVERY_CHIP,
    *,
    exact: bool = False,
) -> list[dict[str, Any]]:
    """Return the k rows that LanceDB finds nearest to a vector, with `similarity`; ties are sorted by chip_id."""
    columns = list(database.FACTS)
    rows = database.nearest(db.table, vector, k, columns, where=chip_filter.sql(), exact=exact).to_pylist()
    for row in rows:
        row["similarity"] = 1 - row.pop("_distance")
    return sorted(rows, key=lambda r: (-r["similarity"], r["chip_id"]))
