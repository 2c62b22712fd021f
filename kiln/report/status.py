"""Say how far a run is: shards done, missing and with failures, and why; and the commands that redo exactly those.

Without RUN, every run below results/ that has a plan. Nothing is changed, but for the lists of files of a long command.
"""

import argparse
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kiln.cli import command_line
from kiln.errors import ConfigError, SourceError
from kiln.formats import plan_file as plans
from kiln.formats.ledger import LEDGER_SCHEMA, ledger_name
from kiln.formats.parquet import parquet_errors
from kiln.io import storage
from kiln.io.text_table import aligned

FOLDER = re.compile(r"[a-z0-9]+-[0-9a-f]{8}")  # of a dataset: its name and its fingerprint
PLAN = re.compile(r"plan-[^/]+\.jsonl(\.gz)?")
PART = re.compile(r"(?<!\.patches)\.parquet$")
COLUMNS = ["unit_id", "status", "reason", "expected", "embedded", "failed"]
HEAD = ("shards", "done", "missing", "failing", "failed units", "embedded", "of chips", "parts")
READERS = 8  # ledgers read at a time
ROWS = 30  # partitions of a dataset shown one by one
REASONS = 20  # failed units shown
INLINE = 8  # files named in a command; more go to a list


@dataclass(frozen=True)
class Account:
    """What a ledger says: failed units with their reasons, chips embedded of those expected."""

    failures: tuple[tuple[str, str], ...] = ()  # (unit, reason); of the whole shard: ("", reason)
    embedded: int = 0
    expected: int = 0


@dataclass(frozen=True)
class Partition:
    """How far one partition of a dataset is; `accounts` are those of the shards that exist, in the plan's order."""

    name: str
    shards: list[str]
    missing: list[str]
    accounts: dict[str, Account]
    parts: int

    @property
    def failing(self) -> list[str]:
        """Shards with a failed unit, or without a whole ledger."""
        return [shard for shard, account in self.accounts.items() if account.failures]

    def numbers(self) -> list[int]:
        """The columns of the table."""
        accounts = self.accounts.values()
        return [
            len(self.shards),
            len(accounts),
            len(self.missing),
            len(self.failing),
            sum(1 for a in accounts for unit, _ in a.failures if unit),
            sum(a.embedded for a in accounts),
            sum(a.expected for a in accounts),
            self.parts,
        ]


@dataclass(frozen=True)
class Folder:
    """A dataset's folder `results/<run>/<dataset>-<fingerprint8>`, below `root`: '', a folder or `s3://...`."""

    root: str
    run: str
    name: str

    @classmethod
    def of(cls, uri: str) -> "Folder":
        """The folder by its path or URI. Raises ConfigError for another one."""
        root, (results, run, name) = _above(uri, 3)
        if results != "results" or not FOLDER.fullmatch(name):
            raise ConfigError(f"{uri}: not the folder of a dataset, results/<run>/<dataset>-<fingerprint>")
        return cls(root, run, name)

    @property
    def path(self) -> str:
        """As the workflow knows it."""
        return f"results/{self.run}/{self.name}"

    @property
    def uri(self) -> str:
        """Where it lies."""
        return _below(self.root, self.path)


@dataclass
class Status:
    """How far a dataset's folder is, by which plans; `notes` tell what else was there."""

    folder: Folder
    plans: dict[str, str] = field(default_factory=dict)  # by partition: the file's name
    notes: list[str] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)

    def targets(self, kind: str) -> list[str]:
        """Shard files that are `missing` or `failing`, as the workflow knows them."""
        return [f"{self.folder.path}/shards/{p.name}/{s}.parquet" for p in self.partitions for s in getattr(p, kind)]


@dataclass(frozen=True)
class Command:
    """A call of Snakemake: why, its flags, and the files it is asked for."""

    why: str
    flags: list[str]
    targets: list[str]
    listed: str = ""  # file for the targets, if they are many

    def text(self) -> str:
        """As it is typed."""
        if not self.targets:
            return shlex.join(["snakemake", *self.flags])
        named = f"$(cat {shlex.quote(self.listed)})" if self.listed else shlex.join(self.targets)
        return f"{shlex.join(['snakemake', *self.flags])} -- {named}"


def _above(uri: str, parts: int) -> tuple[str, list[str]]:
    """What lies above the last parts of a path or URI, and these; '' for each that it has not."""
    path = uri.rstrip("/") if storage.is_s3(uri) else os.path.normpath(uri)
    above, _, inner = path.partition("://") if storage.is_s3(uri) else ("", "", path)
    split = inner.split("/")
    last = [""] * (parts - len(split)) + split[-parts:]
    root = "/".join(split[:-parts]) or ("/" if inner.startswith("/") and len(split) > parts else "")
    return f"{above}://{root}" if above else root, last


def _below(root: str, path: str) -> str:
    return storage.join(root, path) if root != "/" else f"/{path}"


def listing(folder: str) -> list[str]:
    """Files below a folder or prefix; none where there is no such folder."""
    return list(storage.listing(folder)) if storage.is_s3(folder) or Path(folder).is_dir() else []


def runs_here() -> list[str]:
    """Runs below results/ that have a plan. Raises ConfigError if there is none."""
    folders = {p.parent for p in Path("results").glob("*/*/plan-*") if PLAN.fullmatch(p.name)}
    if not (runs := sorted({str(f.parent) for f in folders if FOLDER.fullmatch(f.name)})):
        raise ConfigError("no run with a plan below results/; say which, or make one with `snakemake plan`")
    return runs


def folders_of(run: str) -> dict[str, list[str]]:
    """Files of every dataset's folder of a run that has a plan. Raises ConfigError if there is none, or no run."""
    top = run.rstrip("/") if storage.is_s3(run) else os.path.normpath(run)
    if _above(top, 2)[1][0] != "results":
        raise ConfigError(f"{run}: not the folder of a run, results/<run>")
    found: dict[str, list[str]] = {}
    for file in listing(top):
        folder, _, inner = file.removeprefix(f"{top}/").partition("/")
        if FOLDER.fullmatch(folder) and inner:
            found.setdefault(f"{top}/{folder}", []).append(file)
    if not (made := {folder: files for folder, files in found.items() if plans_among(folder, files)}):
        raise ConfigError(f"{run}: no plan in it; `snakemake plan` makes one")
    return made


def plans_among(folder: str, files: Iterable[str]) -> list[str]:
    """Those files that are plans of a folder."""
    return [f for f in files if PLAN.fullmatch(f.removeprefix(f"{folder}/"))]


def shards_of(plan: str, there: Iterable[str]) -> dict[str, list[str]]:
    """Names of a plan's shards by partition; from the names file beside the plan, where there is one."""
    names = f"{plan.removesuffix('.gz').removesuffix('.jsonl')}.json"
    if names in there:
        return plans.read_names(names)
    found: dict[str, list[str]] = {}
    for line in plans.read_plan(plan):
        found.setdefault(line.partition, []).append(line.name)
    if not found:
        raise ConfigError(f"{plan}: no shard in it")
    return found


def choose(status: Status, files: Sequence[str], there: set[str], exactly: bool) -> dict[str, list[str]]:
    """The shards of a folder by partition, each from the plan that was written last, which `status` then tells.

    Raises ConfigError if several plans have a partition and nothing says which is meant: `exactly` those plans were
    named, or they lie on S3, whose times are those of a copy.
    """
    if not (exactly or storage.is_s3(status.folder.uri)):
        files = sorted(files, key=lambda f: (Path(f).stat().st_mtime_ns, f))
    shards: dict[str, list[str]] = {}
    left: dict[str, list[str]] = {}
    for file in files:
        name = file.rpartition("/")[2]
        for partition, names in shards_of(file, there).items():
            if other := status.plans.get(partition):
                if exactly or storage.is_s3(file):
                    raise ConfigError(
                        f"{status.folder.uri}: {other} and {name} are both plans of {partition}; "
                        "say which one with --plans"
                    )
                left.setdefault(partition, []).append(other)
            status.plans[partition], shards[partition] = name, names
    told: dict[tuple[str, str], list[str]] = {}
    for partition, names in sorted(left.items()):
        told.setdefault((status.plans[partition], ", ".join(names)), []).append(partition)
    for (taken, others), partitions in told.items():
        which = ", ".join(partitions[:3]) + (f" and {len(partitions) - 3} more" if len(partitions) > 3 else "")
        status.notes.append(f"{which}: {taken} was written last and is taken; left alone: {others}")
    return dict(sorted(shards.items()))


def account_of(ledger: str) -> Account:
    """What a ledger says; one that is not whole is a failure of the shard. Raises TransientError or StorageError."""
    try:
        data = storage.read_bytes(ledger)
        with parquet_errors(ledger):
            rows = pq.ParquetFile(pa.BufferReader(data)).read(COLUMNS)
            rows = rows.cast(pa.schema([LEDGER_SCHEMA.field(c) for c in COLUMNS]))
    except SourceError as e:
        return Account((("", str(e)),))
    except (ValueError, pa.ArrowException) as e:  # other columns, of other types, or with nulls
        return Account((("", f"{ledger}: not a ledger ({str(e).splitlines()[0][:120]}); make it again"),))
    failed = [r for r in rows.to_pylist() if r["failed"] or r["status"] == "failed"]
    return Account(
        tuple((r["unit_id"], r["reason"]) for r in failed),
        sum(rows["embedded"].to_pylist()),
        sum(rows["expected"].to_pylist()),
    )


def look(folder: Folder, files: Sequence[str], there: set[str], exactly: bool, parts: str | None = None) -> Status:
    """How far a folder is by these plans: what is `there`, a listing of its parts, and a read of every ledger."""
    status = Status(folder)
    shards = choose(status, files, there, exactly)
    kept = storage.join(parts or _below(folder.root, f"parts/{folder.run}"), folder.name)
    parts_there = [f.removeprefix(f"{kept}/").partition("/")[0] for f in listing(kept) if PART.search(f)]
    done = {
        (partition, shard): ledger_name(file)
        for partition, names in shards.items()
        for shard in names
        if (file := f"{folder.uri}/shards/{partition}/{shard}.parquet") in there
    }
    gone = Account((("", "the ledger is gone"),))
    with ThreadPoolExecutor(READERS) as pool:
        read = pool.map(lambda ledger: account_of(ledger) if ledger in there else gone, done.values())
        accounts = dict(zip(done, read, strict=True))
    for partition, names in shards.items():
        missing = [s for s in names if (partition, s) not in done]
        made = {s: accounts[partition, s] for s in names if (partition, s) in done}
        status.partitions.append(Partition(partition, names, missing, made, parts_there.count(partition)))
    return status


def table_text(status: Status) -> str:
    """A folder's table: a row a partition, and their total if they are more than three."""
    made = status.partitions
    shown = [p for p in made if p.missing or p.failing] if len(made) > ROWS else made
    rows = [(p.name, *(f"{n:,}" for n in p.numbers())) for p in shown]
    if len(made) > 3:
        rows.append(("total", *(f"{sum(n):,}" for n in zip(*(p.numbers() for p in made), strict=True))))
    text = aligned([(status.folder.name, *HEAD), *rows], rule=True)
    if len(shown) < len(made):
        text.append(f"Not shown: {len(made) - len(shown):,} partitions with every shard done and none failing.")
    return "\n".join([*text, *status.notes])


def failures_text(statuses: Sequence[Status]) -> str:
    """The first failed units and why."""
    lines = [
        ": ".join(x for x in (shard, unit, reason) if x)
        for s in statuses
        for p in s.partitions
        for shard, account in p.accounts.items()
        for unit, reason in account.failures
    ]
    more = [f"and {len(lines) - REASONS:,} more"] if len(lines) > REASONS else []
    return "\n".join(["What failed:", *(f"  {x}" for x in lines[:REASONS] + more)]) if lines else ""


def together(statuses: Sequence[Status]) -> list[list[Status]]:
    """Folders that one config can have made: of a run, and of one fingerprint for each dataset."""
    groups: dict[tuple[str, ...], list[Status]] = {}
    folders = [(s.folder.root, s.folder.run, s.folder.name.rpartition("-")[0]) for s in statuses]
    for status, (root, run, dataset) in zip(statuses, folders, strict=True):
        alone = (status.folder.name,) if folders.count((root, run, dataset)) > 1 else ()
        groups.setdefault((root, run, *alone), []).append(status)
    return list(groups.values())


def commands(
    group: Sequence[Status], flags: Mapping[str, Sequence[str]], listed: str, label: str = ""
) -> list[Command]:
    """What redoes the missing shards of a group, what redoes those with failures, and what carries both on.

    `listed` is the name of the lists of files, less what they are of: `redo.txt` is `redo-missing.txt` and so on.
    """
    root = group[0].folder.root
    where = {"--default-storage-provider": ["s3"], "--default-storage-prefix": [root]} if storage.is_s3(root) else {}
    if root and not where:
        where = {"--directory": [root]}
    common = [x for flag, values in {**flags, **where}.items() if values for x in (flag, *values)]
    made = []
    for kind, force, why in (("missing", [], "missing"), ("failing", ["--force"], "with failures")):
        if targets := [t for s in group for t in s.targets(kind)]:
            file = Path(listed)
            file = file.with_stem("-".join(x for x in (file.stem, "failed" if force else kind, label) if x))
            told = f"{len(targets):,} {'shard' if len(targets) == 1 else 'shards'} {why}"
            made.append(Command(told, [*common, *force], targets, str(file) if len(targets) > INLINE else ""))
    return [*made, Command("then carry the results on (products, index)", common, [])] if made else []


def every_command(statuses: Sequence[Status], args: argparse.Namespace) -> list[tuple[str, list[Command]]]:
    """The commands of every group that has something to do, with the group's name where there are several."""
    flags = {"--configfile": args.configfile or [], "--cores": [args.cores]}
    groups, made = together(statuses), []
    for group in groups:
        first = group[0].folder
        alone = len([g for g in groups if (g[0].folder.root, g[0].folder.run) == (first.root, first.run)]) == 1
        name = f"results/{first.run}" if alone else first.path
        label = name.removeprefix("results/").replace("/", "-") if len(groups) > 1 else ""
        if found := commands(group, flags, args.list, label):
            made.append((name if len(groups) > 1 else "", found))
    return made


def commands_text(made: Sequence[tuple[str, list[Command]]]) -> str:
    """The commands as they are typed; writes the lists of those with many files."""
    lines = []
    for name, group in made:
        for c in group:
            note = ""
            if c.listed:
                storage.write_bytes(c.listed, "".join(f"{t}\n" for t in c.targets).encode())
                note = f" (the list was written to {c.listed})"
            lines += [f"{name + ', ' if name else ''}{c.why}{note}:", f"  {c.text()}"]
    return "\n".join(lines)


def as_json(statuses: Sequence[Status], made: Sequence[tuple[str, list[Command]]]) -> dict[str, Any]:
    """Everything, for a machine."""
    keys = [x.replace(" ", "_") for x in HEAD]
    return {
        "folders": [
            {
                "folder": s.folder.uri,
                "notes": s.notes,
                "partitions": [
                    {
                        "partition": p.name,
                        "plan": s.plans[p.name],
                        **dict(zip(keys, p.numbers(), strict=True)),
                        "missing_shards": p.missing,
                        "failures": [
                            {"shard": shard, "unit": unit, "reason": reason}
                            for shard, account in p.accounts.items()
                            for unit, reason in account.failures
                        ],
                    }
                    for p in s.partitions
                ],
            }
            for s in statuses
        ],
        "commands": [["snakemake", *c.flags, *(["--", *c.targets] if c.targets else [])] for _, g in made for c in g],
    }


def main(argv: list[str] | None = None) -> None:
    """Print how far runs are."""
    p = command_line.parser(__doc__, "kiln.report.status")
    p.add_argument(
        "runs", nargs="*", metavar="RUN", help="folder of a run, as results/sample or s3://b/p/results/sample"
    )
    p.add_argument("--plans", nargs="+", metavar="PLAN", help="instead of runs: exactly these plans, where they lie")
    p.add_argument("--parts", metavar="URI", help="where the parts lie, if not in parts/<run> beside results/")
    p.add_argument("--configfile", nargs="+", metavar="FILE", help="of the run, for the commands")
    p.add_argument("--cores", default="all", metavar="N", help="for the commands")
    p.add_argument("--list", default="redo.txt", metavar="FILE", help="lists of many files: redo-missing.txt and so on")
    p.add_argument("--json", action="store_true", help="print it for a machine; no list is written")
    args = p.parse_args(argv)

    def work() -> None:
        if args.runs and args.plans:
            raise ConfigError("say either RUN or --plans")
        runs = [] if args.plans else args.runs or runs_here()
        if args.parts and len(runs) > 1:
            raise ConfigError("--parts is of one run: say which")
        statuses = []
        for run in dict.fromkeys(runs):
            for uri, files in folders_of(run).items():
                statuses.append(look(Folder.of(uri), plans_among(uri, files), set(files), False, args.parts))
        named: dict[Folder, list[str]] = {}
        for plan in dict.fromkeys(args.plans or []):
            folder = Folder.of(plan.rpartition("/")[0] or ".")
            named.setdefault(folder, []).append(f"{folder.uri}/{plan.rpartition('/')[2]}")
        for folder, files in named.items():
            statuses.append(look(folder, files, set(listing(folder.uri)), True, args.parts))
        made = every_command(statuses, args)
        if args.json:
            print(json.dumps(as_json(statuses, made), indent=1))
            return
        several = len({(s.folder.root, s.folder.run) for s in statuses}) > 1
        blocks = [(f"{s.folder.uri.rpartition('/')[0]}\n" if several else "") + table_text(s) for s in statuses]
        done = sum(len(x.shards) for s in statuses for x in s.partitions)
        blocks += [
            failures_text(statuses),
            commands_text(made) or f"Nothing to do: all {done:,} shards are done, none with failures.",
        ]
        print("\n\n".join(b for b in blocks if b))

    command_line.run(work)


if __name__ == "__main__":
    main()
