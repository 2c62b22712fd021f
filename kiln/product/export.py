"""Write a year of WorldCover as the published run did: one file a column, `embeddings` and `bbox`, nothing else.

Files are named `worldcover_embeddings_{year}_{column}_v{version}.gpq`; columns count from -125 degrees east, and `bbox`
is the chip's polygon, the primary geometry. Rows go from north to south.
"""

import json
import logging
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kiln.archives.worldcover.lattice import Lattice
from kiln.cli import command_line
from kiln.errors import ConfigError
from kiln.formats import vectors
from kiln.formats.geoparquet import GeoParquetWriter
from kiln.formats.ledger import read_ledger
from kiln.io import storage

log = logging.getLogger(__name__)


def export(record: str, product: str, out: str, version: str) -> list[str]:
    """Write the product's columns below `out`; returns the files' names, west to east. One column in memory at a time.

    Raises ConfigError for a product that is not WorldCover, or was embedded in quarters.
    """
    about = json.loads(storage.read_bytes(record))
    if about["dataset"] != "worldcover":
        raise ConfigError(f"{record}: a product of {about['dataset']}; the published layout is WorldCover's")
    written = []
    with ExitStack() as stack:
        paths = [stack.enter_context(storage.local_copy(storage.join(product, f["name"]))) for f in about["files"]]
        kiln = json.loads(pq.read_schema(paths[0]).metadata[b"kiln"])
        if kiln["lattice"]["encode"] != "whole":
            raise ConfigError(f"{record}: embedded in quarters; the published files hold whole chips")
        columns = planned_columns(product, kiln["lattice"])
        scales = [vectors.SCALES["embeddings"]] if kiln["storage"] == "int8" else []
        wanted = ["embeddings", *scales, "geometry", "bbox", "row"]
        for column in columns:
            rows = pa.concat_tables(
                pq.read_table(p, columns=wanted, filters=pc.field("col") == column).replace_schema_metadata(None)
                for p in paths
            ).sort_by("row")
            box = rows["bbox"].combine_chunks()
            low, high = ([np.asarray(box.field(k)) for k in pair] for pair in ((0, 1), (2, 3)))
            ends = [*(v.min(initial=np.inf) for v in low), *(v.max(initial=-np.inf) for v in high)]
            name = f"worldcover_embeddings_{about['partition']}_{column}_v{version}.gpq"
            numbers = floats(rows) if scales else rows["embeddings"]
            written_rows = pa.table({"embeddings": numbers, "bbox": rows["geometry"]})
            with storage.atomic(storage.join(out, name)) as path:
                with GeoParquetWriter(path, written_rows.schema, geometry="bbox", box=None) as file:
                    file.write(written_rows, [float(v) for v in ends], {"Polygon"} if len(rows) else set())
            written.append(name)
    return written


def floats(rows: pa.Table) -> pa.FixedSizeListArray:
    """Vectors kept as int8, as the float32 that the published files hold."""
    numbers = vectors.read(rows)
    return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1)), numbers.shape[1])


def planned_columns(product: str, layout: dict) -> list[int]:
    """Numbers of the columns in the product's ledger, those without a chip too."""
    lattice = Lattice(layout["chip_size"], layout["pixels_per_degree"])
    with storage.local_copy(storage.join(product, "ledger.parquet")) as path:
        units = read_ledger(path)["unit_id"].to_pylist()
    starts = [int(u.split(":")[3].removeprefix("x")) for u in units]  # on the 1/12000 grid
    return sorted((x - lattice.native(lattice.x(0))) // lattice.native(lattice.chip) for x in starts)


def main(argv: list[str] | None = None) -> None:
    """Export one year."""
    p = command_line.parser(__doc__, "kiln.product.export")
    p.add_argument("--record", required=True, help="record of the merged year")
    p.add_argument("--product", help="its folder, path or s3://, if not the record's name less .json")
    p.add_argument("--out", required=True, help="folder or s3:// to write to")
    p.add_argument("--version", default="002", help="of the published series")
    args = p.parse_args(argv)

    def work() -> None:
        names = export(args.record, args.product or args.record.removesuffix(".json"), args.out, args.version)
        log.info("%s: %d columns", args.out, len(names))

    command_line.run(work)


if __name__ == "__main__":
    main()
