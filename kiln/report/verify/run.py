"""Verify a run: read every file that it holds, and name the damaged ones with what makes them anew."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiln.errors import ConfigError, SourceError, StorageError
from kiln.io import storage
from kiln.io.progress import Progress
from kiln.product.record import RECORD_NAME
from kiln.report.leftovers import delete_leftovers
from kiln.report.status.command import NAME, RunCommand
from kiln.report.status.folders import (
    CHECKPOINTS,
    FOLDER,
    join_root,
    list_files,
    list_stats,
    plans_among,
    run_folder,
    split_end,
)
from kiln.report.status.redo import snakemake_flags
from kiln.report.verify import outputs, shards
from kiln.report.verify.finding import Check, Finding
from kiln.report.verify.products import product_check

MAX_THREADS = 4  # files verified at a time
SHARD = re.compile(r"shards/[^/]+/[^/]+(?<!\.ledger)(?<!\.patches)\.parquet")
PRODUCT_RECORD = re.compile(r"products/[^/]+/[0-9a-f]{16}\.json")


@dataclass(frozen=True)
class Verification:
    """The result of the verification of a run.

    Attributes:
        run: Path or s3:// of the run.
        files: Number of verified files; a shard counts with its ledger, a product and the database as one.
        findings: The damaged files.
        commands: What makes them anew, in order.
    """

    run: str
    files: int
    findings: Sequence[Finding]
    commands: Sequence[str] = ()

    @property
    def is_intact(self) -> bool:
        """Whether no file is damaged."""
        return not self.findings

    @property
    def files_to_delete(self) -> list[str]:
        """Every file that is deleted so that it is made anew, each once."""
        return list(dict.fromkeys(file for finding in self.findings for file in finding.delete))

    def as_json(self) -> dict[str, Any]:
        """Return JSON values for programs."""
        damaged = [{"file": f.file, "problem": f.problem, "delete": list(f.delete)} for f in self.findings]
        return {"run": self.run, "files": self.files, "damaged": damaged, "commands": list(self.commands)}


def verify(run: str | Path, *, checkpoints: str | None = None, cache: str | Path | None = None) -> Verification:
    """Verify every file of a run. Nothing is changed.

    Weights are compared with the digest of their tensors, plans with those of their lines and with the names of their
    shards, shards and ledgers with their checksums and with one another, products with their records, the database with
    the digests of its files, pictures and pages with their checksums. All of it is read once.

    Args:
        run: Folder `results/<run>`, a path or s3://.
        checkpoints: Folder of its checkpoints, if not `checkpoints/<run>` next to `results/`.
        cache: The explorer's cache on this machine; None: the default one.

    Returns:
        The damaged files, and the commands that make them anew.

    Raises:
        ConfigError: If the folder is not that of a run, or holds nothing.
        TransientError, AccessError, StorageError: If a file cannot be read now.
    """
    uri = run_folder(str(run))
    root, (_, name) = split_end(uri, 2)
    files = list_stats(uri)
    if not files:
        raise ConfigError(f"{uri}: expected the files of a run, got none. Correct the name.")
    models = join_root(root, "results/models")
    weights = [file for file in list_files(models) if file.endswith(".safetensors")]
    finished = list_files(checkpoints or join_root(root, f"{CHECKPOINTS}/{name}"))
    checks = [
        *map(outputs.weights_check, weights),
        *_run_checks(uri, files),
        *(shards.checkpoint_check(file) for file in finished if file.endswith(".parquet")),
        *outputs.cache_checks(f"{uri}/explorer", _cache(cache)),
    ]
    findings = _work(checks)
    return Verification(uri, len(checks), findings, _commands(uri, root, findings))


def _cache(cache: str | Path | None) -> Path:
    from kiln.explorer.matrix_cache import default_cache

    return Path(cache) if cache else default_cache()


def _run_checks(run: str, files: Mapping[str, storage.Stat]) -> list[Check]:
    """Return the checks of the files below a run's folder."""
    checks: list[Check] = []
    names = [file.removeprefix(f"{run}/") for file in files]
    for folder in sorted({name.partition("/")[0] for name in names if FOLDER.fullmatch(name.partition("/")[0])}):
        own = [file for file in files if file.startswith(f"{run}/{folder}/")]
        plans = plans_among(f"{run}/{folder}", own)
        planned = shards.PlannedUnits(plans)
        checks += [shards.plan_check(plan, files) for plan in plans]
        inner = {file: file.removeprefix(f"{run}/{folder}/") for file in own}
        checks += [shards.shard_check(file, files, planned) for file, name in inner.items() if SHARD.fullmatch(name)]
        checks += [product_check(file, files) for file, name in inner.items() if PRODUCT_RECORD.fullmatch(name)]
    records = [
        file for file in files if file.startswith(f"{run}/index/") and RECORD_NAME.fullmatch(file.rpartition("/")[2])
    ]
    if records:
        checks.append(outputs.database_check(f"{run}/explorer", records, files))
    checks += [outputs.picture_check(file) for file in files if re.search(r"/pictures/[^/]+/[^/]+\.(png|html)$", file)]
    if f"{run}/catalog.json" in files:
        checks.append(outputs.catalog_check(run, files))
    checks += [
        outputs.json_check(run, file, files)
        for file in files
        if file == f"{run}/{NAME}" or file.startswith(f"{run}/runs/")
    ]
    return checks


def _work(checks: Sequence[Check]) -> list[Finding]:
    """Return what all checks find, in their order. Several are at work at a time."""
    progress = Progress(len(checks), "verified", embeds=False, unit="file")

    def of(check: Check) -> list[Finding]:
        found = list(check.problems())
        progress.advance(1)
        return found

    try:
        with ThreadPoolExecutor(MAX_THREADS) as pool:
            found = list(pool.map(of, checks))
    finally:
        progress.close()
    return list(dict.fromkeys(finding for some in found for finding in some))


def _commands(run: str, root: str, findings: Sequence[Finding]) -> list[str]:
    """Return the commands that delete damaged files and make them anew."""
    if not findings:
        return []
    commands = [shlex.join(["kiln", "verify", run, "--delete"])]
    try:
        command = RunCommand.read(run)
    except (ConfigError, StorageError, SourceError):  # it is damaged, or an older Kiln began the run
        command = RunCommand()
    flags = snakemake_flags(command, "all", root)
    if targets := sorted({target for finding in findings for target in finding.targets}):
        commands.append(shlex.join(["snakemake", *flags, "--", *targets]))
    if any(finding.is_of_run for finding in findings):
        commands.append(shlex.join(["snakemake", *flags]))
    return commands


def delete_damaged(verification: Verification) -> list[str]:
    """Delete the damaged files of a run, and what is made anew with them. Return them.

    Raises:
        StorageError: If a file cannot be deleted.
    """
    files = verification.files_to_delete
    folders = [] if storage.is_s3(verification.run) else [os.path.join(verification.run, "explorer")]  # noqa: PTH118
    delete_leftovers(files, folders)
    return files
