"""The data card of a product, its README.md: what it is, what is missing, and how to read it."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kiln.formats import vectors
from kiln.formats.columns import described_columns, markdown_table
from kiln.formats.ledger import LEDGER_COUNTS
from kiln.product.description import stac, stac_fields
from kiln.product.facts import ProductFacts
from kiln.product.part_writer import CHIPS

MAX_REASONS = 10  # of failed units
MAX_SHARDS = 20  # missing ones that are named
DAYS = "%Y-%m-%d"
GIVEN = {  # by `metadata` of the config
    "as_trained": "those of each chip, as in its training",
    "zeros": "none",
    "as_published": "those of the published composite",
}
CROSSING = " (west > east: across the antimeridian)"


def data_card(facts: ProductFacts, ledger: pa.Table) -> str:
    """Return the data card of a product as Markdown.

    Args:
        facts: The product.
        ledger: Its ledger.
    """
    metadata = facts.metadata
    sections = [
        f"# {stac_fields.title(metadata)}\n",
        _warnings(metadata),
        f"{stac_fields.lineage(metadata)}.\n",
        _overview(facts),
        _files(facts),
        _reading(facts),
        _vectors(metadata),
        f"## Columns\n\n{markdown_table(described_columns(facts.schema))}",
        _completeness(metadata, facts.counts, ledger),
        _making(metadata),
        _limits(),
        _licence(metadata),
    ]
    return "\n".join(filter(None, sections))


def _table(rows: Sequence[tuple[str, str]], head: tuple[str, str] = ("", "")) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines) + "\n"


def _warnings(metadata: Mapping[str, Any]) -> str:
    lines = []
    if metadata["untrained"]:
        lines.append("> **UNTRAINED weights.** The vectors are a demonstration. They carry no meaning.\n")
    if missing := len(metadata.get("missing_shards", ())):
        lines.append(f"> **Incomplete.** Planned shards that are missing: {missing}; see Completeness.\n")
    return "\n".join(lines)


def _overview(facts: ProductFacts) -> str:
    parts, metadata, counts = facts.parts, facts.metadata, facts.counts
    start, end = (time.strftime(DAYS) for time in stac.time_range(metadata, parts))
    gsd, bbox, chip = stac.pixel_sizes(parts), stac.bounds(parts), stac_fields.encoded_chip_size(metadata)
    rows = [
        ("chips", f"{counts['embedded']:,}, one row each"),
        ("chip", f"{chip} x {chip} pixels{_metres(gsd, chip)}"),
        ("time", f"{start} to {end}" if start != end else start),
        ("vectors", f"{_vector_title(metadata)}, {metadata['dimensions']} numbers, {metadata['vector_dtype']}"),
        ("model", f"[{metadata['model']}]({stac_fields.MODEL})"),
        ("weights", f"`{metadata['weights_sha256']}` (sha256){', untrained' if metadata['untrained'] else ''}"),
        ("fingerprint", f"`{metadata['fingerprint']}`: vectors with another fingerprint cannot be compared with these"),
        ("licence of the archive", _licence_text(metadata)),
    ]
    if counts["embedded"]:
        box = ", ".join(f"{value:.6g}" for value in bbox)
        crossing = CROSSING if bbox.crosses_antimeridian else ""
        rows.insert(2, ("bounding box", f"{box}: west, south, east, north in degrees{crossing}"))
    return _table(rows, ("fact", "value"))


def _vector_title(metadata: Mapping[str, Any]) -> str:
    return stac_fields.VECTOR_TITLES[metadata["embedding"]]


def _metres(gsd: tuple[float, float] | None, chip: int) -> str:
    if gsd is None:
        return ""
    smallest, largest = gsd
    if smallest == largest:
        return f" of {smallest:g} m, a square of {smallest * chip:,.0f} m"
    return f" of {smallest:g} to {largest:g} m"


def _files(facts: ProductFacts) -> str:
    ledger = facts.ledger
    rows = "".join(f"| `{part.name}` | {part.rows:,} | {part.size:,} | `{part.sha256}` |\n" for part in facts.parts)
    return (
        f"## Files\n\nThe folder `{CHIPS}/` holds the rows and nothing else, sorted along a Hilbert curve.\n\n"
        f"| file | rows | bytes | sha256 |\n|---|---|---|---|\n{rows}"
        f"| `{ledger.name}` | | {ledger.size:,} | `{ledger.sha256}` |\n\n"
        f"`{stac.COLLECTION}` and `items/` describe them as STAC: a collection, and an item for each part. The column "
        "`stac_item` names the item of a row.\n"
    )


def _reading(facts: ProductFacts) -> str:
    """Return examples for five tools. They run in the product's folder."""
    metadata = facts.metadata
    box = ", ".join(f"{side:.6g}" for side in stac.bounds(facts.parts))
    is_int8 = metadata["vector_dtype"] == "int8"
    scaled = ' * chips["scale"].to_numpy()[:, None]' if is_int8 else ""
    return f"""## How to read it

From this folder, or with its address in front of `{CHIPS}/`:

```python
import geopandas  # geopandas and NumPy: all chips, with their footprints
import numpy

chips = geopandas.read_parquet("{CHIPS}/")
matrix = numpy.stack(chips["embeddings"]){scaled}  # [chips, {metadata["dimensions"]}]
```

```python
import pyarrow.dataset  # pyarrow: some columns of all parts

table = pyarrow.dataset.dataset("{CHIPS}/").to_table(columns=["chip_id", "datetime", "embeddings"])
```

```python
import duckdb  # DuckDB: SQL over all parts

duckdb.sql("SELECT count(*) AS chips, avg(nodata_fraction) AS nodata FROM '{CHIPS}/*.parquet'")
```

```python
import polars  # Polars: lazily

polars.scan_parquet("{CHIPS}/*.parquet").select("chip_id", "item_id").collect()
```

```python
import kiln  # Kiln: what lies in a bounding box, also on S3

chips = kiln.read_product(".", bbox=({box}), columns=["chip_id", "embeddings"])
```

`kiln export` writes the product, or a part of it, as GeoPackage, GeoJSON, CSV or NumPy, for tools that do not read
Parquet.
"""


def _vectors(metadata: Mapping[str, Any]) -> str:
    kinds = vectors.KINDS[metadata["embedding"]]
    lines = [f"* `{name}`: {vectors.MEANINGS[kind]}." for name, kind in kinds.items()]
    dtype = metadata["vector_dtype"]
    if dtype == "int8":
        lines += [
            f"* The numbers of `{name}` are its integers times `{vectors.SCALES[name]}`. Each row has its own "
            "scale, the largest magnitude over 127. An error is half a scale at most."
            for name in kinds
        ]
    elif dtype == "float16":
        lines.append("* The model's float32 numbers are rounded to the nearest float16.")
    else:
        lines.append("* The numbers are the model's float32 numbers.")
    text = "\n".join(lines)
    return (
        f"## Vectors\n\n{text}\n\nVectors are not normalised. Compare them by the cosine, best after the mean of many "
        "vectors was subtracted.\n"
    )


def _completeness(metadata: Mapping[str, Any], counts: Mapping[str, int], ledger: pa.Table) -> str:
    numbers = _table([(name.replace("_", " "), f"{counts[name]:,}") for name in LEDGER_COUNTS], ("chips", "number"))
    statuses = sorted((v["values"], v["counts"]) for v in pc.value_counts(ledger["status"]).to_pylist())
    units = ", ".join(f"{number:,} {status}" for status, number in statuses) or "none"
    lines = [
        "## Completeness\n",
        "`expected` is the sum of the other numbers. `ledger.parquet` has them for every unit, with reasons.\n",
        numbers,
        f"Units: {units}.\n",
    ]
    failed = ledger.filter(pc.equal(ledger["status"], "failed"))
    if len(failed):
        lines.append(f"Known gaps: units that failed, at least in part: {len(failed):,}.\n")
        reasons = [(v["values"], v["counts"]) for v in pc.value_counts(failed["reason"]).to_pylist()]
        reasons.sort(key=lambda reason: (-reason[1], reason[0]))
        rows = [(_cell(reason), f"{number:,}") for reason, number in reasons[:MAX_REASONS]]
        lines.append(_table(rows, ("reason", "units")))
        if len(reasons) > MAX_REASONS:
            lines.append(f"{len(reasons) - MAX_REASONS:,} further reasons are in the ledger.\n")
    if missing := list(metadata.get("missing_shards", ())):
        named = ", ".join(f"`{name}`" for name in missing[:MAX_SHARDS])
        more = f" and {len(missing) - MAX_SHARDS:,} more" if len(missing) > MAX_SHARDS else ""
        lines.append(f"Known gaps: planned shards that were not embedded are missing: {named}{more}.\n")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Return text that fits a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _making(metadata: Mapping[str, Any]) -> str:
    limits, normalisation = metadata["limits"], metadata["normalisation"]
    bands = zip(
        normalisation["bands"], normalisation["mean"], normalisation["std"], metadata["wavelengths"], strict=True
    )
    band_rows = "".join(f"| {name} | {mean:g} | {std:g} | {wave:g} |\n" for name, mean, std, wave in bands)
    given = "the chip's own" if metadata["gsd"] == "actual" else f"{metadata['gsd']:g} m"
    rows = [
        ("checkpoint", metadata["checkpoint"] or "none"),
        ("precision of the encoder", metadata["precision"]),
        ("date and place that the model is given", GIVEN.get(metadata["metadata"], metadata["metadata"])),
        ("pixel size that the model is given", given),
        ("most nodata in a chip", f"{100 * limits['max_nodata']:g}% of its pixels"),
    ]
    if limits["max_cloud"] is not None:
        rows.append(("most cloud in a chip", f"{100 * limits['max_cloud']:g}% of its valid pixels"))
    if metadata.get("deduplicated"):
        rows.append(("chips of a lattice cell", "one: that with the least nodata"))
    rows += [(f"recipe of {name}", str(number)) for name, number in sorted(metadata["recipes"].items())]
    rows += [(name, version) for name, version in stac_fields.software_versions(metadata).items()]
    return (
        f"## How it was made\n\n{_table(rows, ('setting', 'value'))}\n"
        "The model sees digital numbers, less the mean and divided by the standard deviation:\n\n"
        f"| band | mean | standard deviation | wavelength in um |\n|---|---|---|---|\n{band_rows}\n"
        "The footer of every part has all of this as JSON, with the state of every source file (`kiln`), and what STAC "
        "states (`emb`).\n"
    )


def _limits() -> str:
    lines = [
        "* The vectors stand for complete chips. An object much smaller than a chip may leave no trace in them.",
        "* Vectors of another model, kind, precision, chip size or lattice cannot be compared with these.",
        "* Season, haze, view angle and processing change vectors too. Compare dates with care.",
    ]
    return "## Limits\n\n" + "\n".join(lines) + "\n"


def _licence_text(metadata: Mapping[str, Any]) -> str:
    source = stac_fields.provenance(metadata)
    identifier = f" ({source.license})" if source.license != "other" else ""
    return f"[{source.license_title}]({source.license_href}){identifier}"


def _licence(metadata: Mapping[str, Any]) -> str:
    source = stac_fields.provenance(metadata)
    providers = "; ".join(f"[{p.name}]({p.url}) ({', '.join(p.roles)})" for p in source.providers)
    return (
        f"## Licence and citation\n\nArchive: {_licence_text(metadata)}. Providers: {providers}.\n\n"
        f"The weights of Clay have a licence of their own, stated on [the model's page]({stac_fields.MODEL}).\n\n"
        f"Please cite the archive, the model and Kiln:\n\n* {source.attribution} {source.href}\n"
        f"* Clay Foundation Model, {metadata['model']}, Clay Foundation. {stac_fields.MODEL}\n"
        "* Kiln: Clay embeddings of Earth-observation archives, the Kiln contributors.\n"
    )
