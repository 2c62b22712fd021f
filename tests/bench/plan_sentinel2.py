"""Cost of planning Sentinel-2 from an S3 inventory: seconds and memory for ten million lines.

    python -m tests.bench.plan_sentinel2 [--lines 10000000] [--tiles 29 30R]

The bench generates the inventory in S3's format: gzipped parts with their digests, and 19 files per item. Some keys
have the old layout below `/2019/`. Some products have two versions, whose items are read from a folder. The plan runs
in a separate process, as in the workflow. The bench exits with 1 above 60 s, above 1 GB of all processes together, or
if an item is missing in the plan.
"""

import argparse
import gzip
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path

from tests import ROOT

FOLDER = "sentinel-s2-l2a-cogs"
FILES = [f"B{n:02d}.tif" for n in (*range(1, 10), 11, 12)]
FILES += ["B8A.tif", "SCL.tif", "AOT.tif", "WVP.tif", "L2A_PVI.tif", "thumbnail.jpg", "granule_metadata.xml"]
COLUMNS = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")
PARTS = 16
TWICE = 1000  # one item in 1000 has a second version
BOGUS = 150  # one line in 150 has the old layout


def item_id(n: int) -> str:
    """Return the id of the n-th item. Zones vary fastest, then columns, rows, days, months and years."""
    n, zone = divmod(n, 60)
    n, column = divmod(n, 8)
    n, row = divmod(n, 20)
    n, day = divmod(n, 28)
    year, month = divmod(n, 12)
    square = COLUMNS[(zone + 1) % 3][column] + "ABCDEFGHJKLMNPQRSTUV"[row]
    return f"S2A_{zone + 1}R{square}_{2018 + year}{month + 1:02d}{day + 1:02d}_0_L2A"


def folder_of(name: str) -> str:
    """Return the folder of an item in the archive."""
    _, tile, day, _, _ = name.split("_")
    return f"{FOLDER}/{tile[:-3]}/{tile[-3]}/{tile[-2:]}/{day[:4]}/{int(day[4:6])}/{name}"


def names(first: int, last: int) -> list[str]:
    """Return the ids of a range of items. Some have two versions."""
    ids = [item_id(n) for n in range(first, last)]
    return ids + [i.replace("_0_", "_1_") for n, i in enumerate(ids, first) if n % TWICE == 0]


def make_part(path: str, first: int, last: int) -> tuple[str, int, int]:
    """Write a part; return its MD5, its size in bytes and its number of lines."""
    lines: list[str] = []
    row = '"sentinel-cogs","{}/{}","{}","2020-08-19T02:{:02d}:{:02d}.000Z"\n'.format
    for n, name in enumerate(names(first, last)):
        home, bogus = folder_of(name), f"{FOLDER}/2019/{name}"
        seconds = n % 60
        lines += [row(home, f, 1_000_000 + n * 7919 % 99_999_999, k, seconds) for k, f in enumerate(FILES)]
        lines.append(row(home, f"{name}.json", 20848, 20, seconds))
        if n % (BOGUS // len(FILES)) == 0:
            lines.append(row(bogus, (f"{name}.json", *FILES)[n % 19], 20848, 21, seconds))
    data = gzip.compress("".join(lines).encode(), 6, mtime=0)
    Path(path).write_bytes(data)
    return hashlib.md5(data, usedforsecurity=False).hexdigest(), len(data), len(lines)


def make(folder: Path, lines: int) -> tuple[Path, int, int]:
    """Write the inventory and the items of two versions.

    Return the path of the manifest, the number of items that a plan should have, and the number of lines.
    """
    items = lines // (len(FILES) + 1)
    edges = [n * items // PARTS for n in range(PARTS + 1)]
    (folder / "data").mkdir()
    keys = [f"inventory/data/{n:02d}.csv.gz" for n in range(PARTS)]
    paths = [str(folder / "data" / k.rpartition("/")[2]) for k in keys]
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(make_part, paths, edges, edges[1:]))
    manifest = {"sourceBucket": "sentinel-cogs", "destinationBucket": "arn:aws:s3:::inventory", "version": "2016-11-30"}
    manifest |= {"fileFormat": "CSV", "fileSchema": "Bucket, Key, Size, LastModifiedDate"}
    files = [{"key": k, "size": size, "MD5checksum": md5} for k, (md5, size, _) in zip(keys, parts, strict=True)]
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    for n, version in product(range(0, items, TWICE), (0, 1)):
        name = item_id(n).replace("_0_", f"_{version}_")
        path = folder / "archive" / folder_of(name) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document(name, version)))
    return folder / "manifest.json", items, sum(part[2] for part in parts)


def document(name: str, version: int) -> dict[str, object]:
    """Return an item with only the properties that Kiln reads."""
    day = name.split("_")[2]
    properties = {"datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T11:00:00Z", "platform": "sentinel-2a"}
    properties |= {"s2:processing_baseline": f"0{version + 2}.14", "s2:generation_time": "2020-02-19T12:39:47Z"}
    properties |= {"s2:datastrip_id": f"S2A_OPER_MSI_L2A_DS_MPS__20200219T123947_S{day}T113105_N02.14"}
    return {"type": "Feature", "stac_version": "1.0.0", "id": name, "properties": properties, "assets": {}, "links": []}


def tree_mb(pid: int) -> float:
    """Return the resident MB of a process and its descendants. Shared pages count for each process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # the process has ended
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(tree_mb(int(child)) for child in below)


def used() -> float:
    """Return the CPU seconds of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def plan(manifest: Path, folder: Path, flags: list[str]) -> tuple[float, float, float]:
    """Plan in a separate process; return seconds, CPU seconds, and the peak memory of it and its children in MB."""
    output = ["--output", str(folder / "plan.gz"), "--archive", str(folder / "archive")]
    command = [sys.executable, "-m", "scripts.plan_units", "sentinel2", "--inventory", str(manifest), *output, *flags]
    began, before, peak = time.monotonic(), used(), 0.0
    with (folder / "log").open("wb") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stderr=stderr)
        while process.poll() is None:
            peak = max(peak, tree_mb(process.pid))
            time.sleep(0.05)
    seconds = time.monotonic() - began
    print((folder / "log").read_text(errors="replace"))
    if process.returncode:
        sys.exit(process.returncode)
    return seconds, used() - before, peak


def main(argv: list[str] | None = None) -> None:
    """Measure and print; exit with 1 if a limit is exceeded."""
    p = argparse.ArgumentParser(prog="python -m tests.bench.plan_sentinel2", description=(__doc__ or "").split("\n")[0])
    p.add_argument("--lines", type=int, default=10_000_000)
    p.add_argument("--tiles", nargs="*", default=[], help="as `--tiles` of the plan")
    p.add_argument("--max-seconds", type=float, default=60.0)
    p.add_argument("--max-mb", type=float, default=1000.0)
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        manifest, items, lines = make(folder, args.lines)
        print(f"{lines:,} lines of {items:,} products written in {time.monotonic() - began:.0f} s")
        seconds, cpu, peak = plan(manifest, folder, ["--tiles", *args.tiles])
        with gzip.open(folder / "plan.gz") as shards:
            planned = sum(len(json.loads(line)["units"]) for line in shards)
    whole = planned == items or bool(args.tiles)
    rows = [
        ("lines", f"{lines:,}", "", True),
        ("items planned", f"{planned:,}", "" if args.tiles else f"{items:,}", whole),
        ("seconds", f"{seconds:.1f}", f"{args.max_seconds:.0f}", seconds <= args.max_seconds),
        ("of CPU, all processes", f"{cpu:.1f}", "", True),
        ("peak MB of all processes", f"{peak:.0f}", f"{args.max_mb:.0f}", peak <= args.max_mb),
    ]
    for what, value, limit, good in rows:
        print(f"{what:<28}{value:>14}{limit:>12}{'' if good else '  BROKEN'}")
    print(
        json.dumps(
            {
                "lines": lines,
                "items": planned,
                "seconds": round(seconds, 2),
                "cpu": round(cpu, 2),
                "peak_mb": round(peak),
            }
        )
    )
    sys.exit(not all(good for *_, good in rows))


if __name__ == "__main__":
    main()
