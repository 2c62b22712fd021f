"""A tiny run of the real workflow, in folders of its own, for the tests of the rules."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kiln.sample.worldcover import make_worldcover
from tests import ROOT
from tests.support import scenes

CONFIG = {
    "run": "tiny",
    "datasets": ["worldcover"],
    "model": {"untrained": {"seed": 1, "dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 2}},
    "worldcover": {
        "archive": "archive/rgbnir",
        "years": [2021],
        "region": [-1, 43, 1, 44],
        "pixels_per_degree": 120,
        "chip_size": 24,
        "columns_per_shard": 5,
    },
    "pictures": {"neighbours": 4},
    "resources": {"batch_size": 8, "read_threads": 1},
}
SCENES = {("nd", 2019): range(6), ("nd", 2021): range(3), ("va", 2016): range(3)}
WITH_NAIP = {
    **CONFIG,
    "datasets": ["worldcover", "naip"],
    "worldcover": {**CONFIG["worldcover"], "region": [-1, 43, 0, 44]},
    "naip": {"manifest": "scenes/manifest.txt", "archive": "scenes", "scenes_per_shard": 3, "chip_size": 16},
}


def merged(base: dict, changes: dict) -> dict:
    """`base` with nested `changes`."""
    made = dict(base)
    for key, value in changes.items():
        made[key] = merged(made[key], value) if isinstance(value, dict) and isinstance(made.get(key), dict) else value
    return made


@dataclass
class Run:
    """A working directory with an archive and a config; `root` is the checkout whose Snakefile runs.

    `changes` are made to `base`, a config that runs.
    """

    folder: Path
    changes: dict = field(default_factory=dict)
    root: Path = ROOT
    base: dict = field(default_factory=lambda: CONFIG)
    variables: dict = field(default_factory=dict)  # of the environment

    def __post_init__(self) -> None:
        self.configure(self.changes)

    def configure(self, changes: dict) -> None:
        """Write the config with other changes."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(merged(self.base, changes)))

    def command(self, *arguments: str) -> list[str]:
        snakemake = ["-m", "snakemake", "-s", str(self.root / "Snakefile"), "--directory", str(self.folder)]
        return [sys.executable, *snakemake, "--configfile", str(self.folder / "config.yaml"), *arguments]

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **self.variables, **more}

    def snakemake(self, *arguments: str, check: bool = True, **environment: str) -> str:
        """Run Snakemake and return what it printed, on both streams."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout
        assert check or done.returncode != 0, done.stdout
        return done.stdout

    def jobs(self, *targets: str) -> dict[str, int]:
        """Jobs that a dry run would do, by rule."""
        return job_counts(self.snakemake("-n", *targets))

    def files(self, below: str = "results") -> dict[str, str]:
        """sha256 of every file of the results, but database, pictures and costs, whose bytes may differ."""
        top = self.folder / below
        skip = ("/explorer/", "/pictures/", "/runs/", "/command.json")
        return {
            str(p.relative_to(top)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(top.rglob("*"))
            if p.is_file() and not any(s in f"/{p.relative_to(top)}" for s in skip)
        }

    def one(self, pattern: str) -> Path:
        """The only file that matches."""
        found = sorted(self.folder.glob(pattern))
        assert len(found) == 1, found
        return found[0]

    def shards(self, dataset: str = "worldcover") -> list[Path]:
        """Embeddings files of a dataset's shards, in order."""
        found = sorted(self.folder.glob(f"results/tiny/{dataset}-*/shards/*/*.parquet"))
        return [p for p in found if not p.name.endswith(".ledger.parquet")]

    def clone(self, folder: Path, *, records: bool = False) -> "Run":
        """The same files with their times in another folder; Snakemake's own records of them only if asked for."""
        shutil.copytree(self.folder, folder, ignore=None if records else shutil.ignore_patterns(".snakemake"))
        return Run(folder, self.changes, self.root, self.base, self.variables)


def job_counts(output: str) -> dict[str, int]:
    """The last table of job counts that Snakemake printed."""
    tables = output.split("Job stats:")
    if len(tables) < 2:
        return {}
    rows = re.findall(r"^([\w-]+)\s+(\d+)$", tables[-1].split("\n\n")[0], flags=re.M)
    return {rule: int(n) for rule, n in rows if rule != "total"}


def finished_jobs(output: str) -> dict[str, int]:
    """Jobs that a run finished, by rule: those after a checkpoint too, which the first table of counts has not."""
    return dict(Counter(re.findall(r"^Finished jobid: \d+ \(Rule: ([\w-]+)\)$", output, flags=re.M)))


def fresh(folder: Path, changes: dict | None = None, root: Path = ROOT) -> Run:
    """Return a run that has not started, with an archive of two tiles at the coast."""
    folder.mkdir(parents=True, exist_ok=True)
    make_worldcover(folder / "archive", tiles=["N43W001", "N43E000"], years=[2021], ppd=120, seed=7)
    return Run(folder, changes or {}, root)


def fresh_naip(folder: Path, changes: dict | None = None) -> Run:
    """Return a run that has not started, with a tile of WorldCover and twelve scenes of NAIP."""
    make_worldcover(folder / "archive", tiles=["N43W001"], years=[2021], ppd=120, seed=7)
    keys = [scenes.write(folder / "scenes", *of, n) for of, numbers in SCENES.items() for n in numbers]
    scenes.write_manifest(folder / "scenes/manifest.txt", keys)
    return Run(folder, changes or {}, base=WITH_NAIP)


def copy_checkout(folder: Path) -> Path:
    """Copy the code alone to a new folder. Return the folder."""
    for part in ("Snakefile", "workflow", "rules", "scripts", "kiln", "config", "profiles", "envs", "docs"):
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, folder / part)
    return folder


IMPORTER = """\
configfile: "config.yaml"
module kiln:
    snakefile: {snakefile}
    config: config
    {paths}
use rule * from kiln as kiln_*
rule own:
    output: "own.txt"
    shell: "echo ${{{{PYTHONPATH:-}}}} > {{output}}"
"""


def write_importer(folder: Path, snakefile: str = f'"{ROOT}/Snakefile"', paths: str = "") -> None:
    """Write a workflow that imports Kiln as a module.

    Args:
        folder: Where its Snakefile is written, next to a config.yaml.
        snakefile: Python expression of Kiln's Snakefile.
        paths: A line `prefix: ...` or `replace_prefix: ...`.
    """
    (folder / "Snakefile").write_text(IMPORTER.format(snakefile=snakefile, paths=paths))


FORKED = """\
import json, os, sys
import snakemake.cli, jsonschema, yaml
for folder, variables, arguments, output in json.load(sys.stdin):
    if (child := os.fork()) == 0:
        os.chdir(folder)
        os.environ.update(variables)
        text = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(text, 1), os.dup2(text, 2)
        snakemake.cli.main(["-n", *arguments])
    os.waitpid(child, 0)
"""


@dataclass(frozen=True)
class DryRun:
    """A dry run as a person calls it: the working folder, the arguments, and variables of the environment."""

    folder: Path
    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


def dry_runs(calls: list[DryRun], outputs: Path) -> list[str]:
    """Return what each dry run prints. They share the imports of one process, which is most of their time."""
    outputs.mkdir(exist_ok=True)
    files = [outputs / f"{n}.txt" for n in range(len(calls))]
    listed = [[str(c.folder), c.variables, list(c.arguments), str(f)] for c, f in zip(calls, files, strict=True)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PATH": path}
    subprocess.run(
        [sys.executable, "-c", FORKED], input=json.dumps(listed), text=True, check=True, env=environment, timeout=900
    )
    return [file.read_text() for file in files]
