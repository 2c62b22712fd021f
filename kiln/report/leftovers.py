"""The files of a run that belong to nothing: what stays when shards, records or plans are deleted."""

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from kiln.io import storage
from kiln.report.status.folders import FOLDER, list_files, plans_among

RECORDED = re.compile(r"(.*/(?:products/[^/]+|pictures)/[0-9a-f]{16})/.+")  # a folder that a record stands for
JOB_RECORD = re.compile(r".*/runs/jobs/([^/]+)/(.+)\.json")
COST_RECORD = re.compile(r".*/runs/([^/]+)\.json")
SHARD_FILE = re.compile(r"(.*/shards/[^/]+/.+?)(\.ledger|\.patches)?\.parquet")


def find_leftovers(run: str, checkpoints: str) -> list[str]:
    """Return the files that `snakemake --delete-all-output` leaves, in order.

    These are ledgers, patch files and job records without their shard, products without their record, pictures and a
    database without the record of a database, and checkpoints and costs of datasets without a plan; without any
    plan, the catalog and the call of the run too. A file that anything needs is not among them.

    Args:
        run: Folder `results/<run>`, a path or s3://.
        checkpoints: Folder of its checkpoints.
    """
    run, checkpoints = (uri if storage.is_s3(uri) else os.path.normpath(uri) for uri in (run, checkpoints))
    files = set(list_files(run))
    databases = {file.removesuffix(".json").rpartition("/")[2] for file in files if file.startswith(f"{run}/index/")}
    leftovers = [file for file in files if _belongs_to_nothing(file, run, files, databases)]
    folders = {file.removeprefix(f"{run}/").partition("/")[0] for file in files}
    planned = {name for name in folders if FOLDER.fullmatch(name) and plans_among(f"{run}/{name}", files)}
    leftovers += [file for file in files if (cost := COST_RECORD.fullmatch(file)) and cost[1] not in planned]
    if not planned:
        leftovers += [uri for name in ("catalog.json", "command.json") if (uri := f"{run}/{name}") in files]
    finished_units = list_files(checkpoints)
    leftovers += [f for f in finished_units if f.removeprefix(f"{checkpoints}/").partition("/")[0] not in planned]
    return sorted(leftovers)


def _belongs_to_nothing(file: str, run: str, files: set[str], databases: set[str]) -> bool:
    if shard := SHARD_FILE.fullmatch(file):
        return bool(shard[2]) and f"{shard[1]}.parquet" not in files
    if job := JOB_RECORD.fullmatch(file):
        return f"{run}/{job[1]}/shards/{job[2]}.parquet" not in files
    if file.startswith(f"{run}/explorer/"):
        return not databases
    if recorded := RECORDED.fullmatch(file):
        folder = recorded[1]
        return folder.rpartition("/")[2] not in databases if "/pictures/" in folder else f"{folder}.json" not in files
    return False


def delete_leftovers(files: Sequence[str], folders: Sequence[str]) -> None:
    """Delete files, and the empty local folders below `folders`. Raises StorageError for an error of disk or store."""
    for file in files:
        storage.delete(file)
    for top in folders:
        if not storage.is_s3(top):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):  # not empty
                    Path(folder).rmdir()
