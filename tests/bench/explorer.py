"""The explorer with a million chips: time of searches and tiles, memory of the server, recall of the index.

    python -m tests.bench.explorer [--rows N] [--dim D] [--keep FOLDER]

The bench builds a database of a million chips with vectors of 1024 numbers: two years of a lattice, with vectors that
depend on the place. It serves the database in a separate process, sends requests over HTTP, and opens the page in a
browser. The server's processor time is printed next to each time, since it depends less on the load of the machine.

The bench exits with 1 if a limit is exceeded: the page shows its map in 2 s, a search by mean takes 100 ms on the
server, a tile takes 50 ms (medians), the server's own memory is 1.5 GB, and recall@10 against exact search is 0.98.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import requests
import shapely
from playwright.sync_api import sync_playwright

from kiln.explorer import colours, database, ranking, search
from kiln.explorer.build import builder
from kiln.explorer.filters import EVERY_CHIP
from kiln.explorer.matrix import Matrix
from kiln.explorer.web.version import Version
from kiln.io import storage
from tests.explorer.browser import launch
from tests.explorer.serving import ROOT, Server

SIDE = 512 / 12000  # degrees of a chip
BATCH = 4096
LATENT, NOISE = 32, 0.35  # dimensions of the variation between places, and standard deviation of a chip's noise
TILES = 40


def generate_chips(rows: int, dim: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield batches of chips of a lattice in two years, row by row."""
    rng = np.random.default_rng(0)
    wide = int(np.ceil(np.sqrt(rows)))
    axes, base = rng.standard_normal((LATENT, dim)).astype(np.float32), rng.standard_normal(dim).astype(np.float32) * 4
    waves = rng.normal(0, 0.03, (LATENT, 2)) * np.array([0.7, 1.3])
    phases = rng.uniform(0, 2 * np.pi, LATENT)
    for first in range(0, rows, BATCH):
        n = np.arange(first, min(first + BATCH, rows))
        place, year = n // 2, 2020 + n % 2
        col, row = place % wide, place // wide
        latent = np.sin(np.outer(col, waves[:, 0]) + np.outer(row, waves[:, 1]) + phases) ** 3 * 2
        latent += rng.standard_normal(latent.shape) * 0.3
        vectors = base + latent.astype(np.float32) @ axes + NOISE * rng.standard_normal((len(n), dim), np.float32)
        west, north = -125 + col * SIDE * 0.5, 50 - row * SIDE
        west, east, north, south = west, west + SIDE * 0.5, north, north - SIDE
        lon, lat = (west + east) / 2, (south + north) / 2
        names = [f"bench:{y}:{c}:{r}" for y, c, r in zip(year.tolist(), col.tolist(), row.tolist(), strict=True)]
        datetimes = pa.array([f"{y}-06-01T00:00Z" for y in year.tolist()]).cast(pa.timestamp("ms", tz="UTC"))
        columns: dict[str, Any] = {
            "chip_id": names,
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), dim),
            "dataset": ["worldcover"] * len(n),
            "year": pa.array(year, pa.int16()),
            "datetime": datetimes,
            "item_id": [f"tile-{c // 24}" for c in col.tolist()],
            "source": [f"s3://archive/tile-{c // 24}.tif" for c in col.tolist()],
            "nodata_fraction": pa.array(rng.uniform(0, 0.05, len(n)), pa.float32()),
            "cloud_fraction": pa.array(rng.uniform(0, 0.5, len(n)), pa.float32()),
            "lon": lon, "lat": lat, "xmin": west, "ymin": south, "xmax": east, "ymax": north,
            "cell": database.cells(lon, lat),
            "geometry": shapely.to_wkb(shapely.box(west, south, east, north)),
        }  # fmt: skip
        yield pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)


def make(db: str, rows: int, dim: int) -> None:
    """Write the database with its indexes and its tag, as the rule `build_index` does."""
    about = {"worldcover": {"model": "bench", "weights_sha256": "0" * 64, "dimensions": dim, "embedding": "class"}}
    schema = database.chips_schema(dim, about)
    reader = pa.RecordBatchReader.from_batches(schema, generate_chips(rows, dim, schema))
    chips = database.connect(db).create_table(database.TABLE, reader, schema=schema, mode="overwrite")
    builder.create_indexes(chips)
    colours.write_colours(chips, db, chips.version)
    storage.write_bytes(storage.join(db, "state", f"{chips.version}.json"), b"{}\n")
    chips.tags.create(database.TAG, chips.version)


def recall(version: Version, count: int) -> float:
    """Return the fraction of the 10 best chips by exact search that the index finds, for random likes and dislikes."""
    matrix, rng = version.matrix, np.random.default_rng(1)
    hits = 0
    for n in range(count):
        likes = rng.choice(len(matrix), 1 + n % 4, replace=False)
        dislikes = rng.choice(len(matrix), n % 3, replace=False)
        direction = ranking.mean_direction(*(colours.unit(matrix.vectors[rows]) for rows in (likes, dislikes)))
        rows = search.index_rows(version.db, matrix, direction, EVERY_CHIP, 10, len(matrix))
        true, _ = ranking.top(matrix, np.ones(len(matrix), bool), direction, 10)
        hits += len(np.intersect1d(rows, true))
    return hits / (10 * count)


def bodies(matrix: Matrix, count: int, **more: Any) -> list[dict[str, Any]]:
    """Return bodies of searches, as the page sends them."""
    rng = np.random.default_rng(2)
    return [
        {
            "likes": matrix.ids(rng.choice(len(matrix), more.get("each", 3), replace=False)),
            "dislikes": matrix.ids(rng.choice(len(matrix), more.get("each", 2), replace=False)),
            "k": 50,
            **{k: v for k, v in more.items() if k != "each"},
        }
        for _ in range(count)
    ]


def timed(work: Callable[[Any], requests.Response], inputs: list[Any]) -> list[tuple[float, requests.Response]]:
    """Return milliseconds and response of each request. The first few only warm up and are left out."""
    out = []
    for n, item in enumerate(inputs):
        began = time.perf_counter()
        answer = work(item)
        answer.raise_for_status()
        if n >= min(3, len(inputs) - 1):
            out.append(((time.perf_counter() - began) * 1000, answer))
    return out


def processor_ms(pid: int) -> float:
    """Return the processor time in ms that all threads of a process have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(v) for v in fields[11:13]) * 1000 / os.sysconf("SC_CLK_TCK")


def first_pictures(address: str, count: int = 5) -> list[float]:
    """Return the seconds from the request of the page until its map is drawn, each in a new session without a cache."""
    with sync_playwright() as driver:
        browser = launch(driver)
        times = []
        for _ in range(count):
            page = browser.new_context(viewport={"width": 1360, "height": 820}).new_page()
            began = time.perf_counter()
            page.goto(address)
            page.wait_for_selector("body[data-map=drawn]")
            times.append(time.perf_counter() - began)
            page.context.close()
        browser.close()
    return times[1:]  # the first warms the browser


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process in MB, without pages of mapped files."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(status[n].split()[0]) for n in ("RssAnon", "RssShmem")) / 1024


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exit with 1 if a limit is exceeded."""
    p = argparse.ArgumentParser(prog="python -m tests.bench.explorer", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--rows", type=int, default=1_000_000)
    p.add_argument("--dim", type=int, default=1024)
    p.add_argument("--queries", type=int, default=30, help="for the recall; a third as many for each search")
    p.add_argument("--keep", type=Path, help="folder for database and cache; existing ones are used again")
    p.add_argument("--max-search-ms", type=float, default=100.0)
    p.add_argument("--max-tile-ms", type=float, default=50.0)
    p.add_argument("--max-page-s", type=float, default=2.0)
    p.add_argument("--max-mb", type=float, default=1500.0)
    p.add_argument("--min-recall", type=float, default=0.98)
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name:
        folder = args.keep or Path(name)
        good = measure(folder, args)
    sys.exit(0 if good else 1)


def measure(folder: Path, args: argparse.Namespace) -> bool:
    """Build the database, serve it and measure. Return whether all limits are met."""
    db, cache = str(folder / f"db-{args.rows}-{args.dim}"), folder / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    seconds = {}
    began = time.monotonic()
    if not (Path(db) / "state").is_dir():
        make(db, args.rows, args.dim)
        seconds["database built"] = time.monotonic() - began
    began = time.monotonic()
    version = Version(db, cache)
    seconds["matrix built or opened"] = time.monotonic() - began
    index_recall = recall(version, args.queries)
    began = time.monotonic()
    server = Server(ROOT, folder, db)
    try:
        seconds["server started"] = time.monotonic() - began
        rows = measure_requests(server.address, version.matrix, args, server.process.pid)
        page_s = statistics.median(first_pictures(server.address))
        own_mb = memory_mb(server.process.pid)
    finally:
        server.stop()
    rows += [
        Row("map of the page drawn, s", page_s, args.max_page_s),
        Row("memory without mapped files, MB", own_mb, args.max_mb),
        Row("recall@10 of mean by index", index_recall, args.min_recall, at_least=True),
        *(Row(f"{what}, s", took) for what, took in seconds.items()),
    ]
    print(f"{args.rows:,} chips, {args.dim} dimensions, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':<34}{'median':>12}{'limit':>10}{'processor':>12}")
    for row in rows:
        print(row)
    print(json.dumps({row.what: round(row.value, 4) for row in rows}))
    return all(row.good for row in rows)


@dataclass(frozen=True)
class Row:
    """A result, its limit, and the server's processor time in ms."""

    what: str
    value: float
    limit: float | None = None
    processor: float | None = None
    at_least: bool = False

    @property
    def good(self) -> bool:
        """Whether the limit is met."""
        return self.limit is None or (self.value >= self.limit if self.at_least else self.value <= self.limit)

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"{self.limit:g}"
        processor = "" if self.processor is None else f"{self.processor:.0f}"
        return f"{self.what:<34}{self.value:>12.3f}{limit:>10}{processor:>12}{'' if self.good else '  BROKEN'}"


def measure_requests(address: str, matrix: Matrix, args: argparse.Namespace, server: int) -> list[Row]:
    """Return the medians of searches and tiles."""
    session = requests.Session()
    rows: list[Row] = []

    def post(body: dict[str, Any]) -> requests.Response:
        time.sleep(0.15)  # stays below the rate limit of the server
        return session.post(f"{address}api/search", json=body)

    west, north = float(matrix["xmin"].min()), float(matrix["ymax"].max())
    box = {"filters": {"bbox": [west, north - 8, west + 8, north], "max_cloud": 0.3}}
    kinds = [
        ("search by mean", {}, args.max_search_ms),
        ("search by mean, k 500", {"k": 500}, None),
        ("search by mean, box and cloud", box, args.max_search_ms),
        ("search by mean, 20 km apart", {"apart_km": 20}, None),
        ("search by linear, every chip", {"method": "linear", "each": 5}, None),
        ("search by linear, box and cloud", {"method": "linear", "each": 5, **box}, None),
    ]
    for what, more, limit in kinds:
        searches = bodies(matrix, args.queries // 3 + 3, **more)
        began = processor_ms(server)
        answers = timed(post, searches)
        used = (processor_ms(server) - began) / len(searches)
        rows.append(Row(f"{what}, ms", statistics.median(a.json()["ms"] for _, a in answers), limit, used))
    rng = np.random.default_rng(3)
    for layer in ("coverage", "colours"):
        tiles = []
        for z in rng.integers(0, 14, TILES).tolist():
            at = int(rng.integers(len(matrix)))
            x = int((matrix["lon"][at] + 180) / 360 * 2**z)
            tiles.append((z, x, int(matrix["mercator_y"][at] * 2**z)))
        began = processor_ms(server)
        answers = timed(lambda t: session.get(f"{address}api/tiles/{layer}/{t[0]}/{t[1]}/{t[2]}.png"), tiles)  # noqa: B023
        used = (processor_ms(server) - began) / len(tiles)
        rows.append(Row(f"tile of {layer}, ms", statistics.median(t for t, _ in answers), args.max_tile_ms, used))
        rows.append(Row(f"tile of {layer}, 95th, ms", sorted(t for t, _ in answers)[int(0.95 * len(answers))]))
    return rows


if __name__ == "__main__":
    main()
