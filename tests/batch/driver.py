"""A driver: a fresh clone of the project from which Snakemake sends jobs to the lab."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from kiln.io import storage
from tests.batch.lab import ROOT, Lab, said

PROFILE = ["--profile", "aws-batch", "--seconds-between-status-checks", "2"]  # 10 seconds suit longer jobs


def clone(folder: Path) -> str:
    """The project as it lies here, in a repository of its own; returns the digest of its tree."""
    listed = said(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for command in (["init", "-q"], ["add", "--all"]):
        said(["git", *command], cwd=folder)
    return said(["git", "write-tree"], cwd=folder).strip()


@dataclass
class Driver:
    """A clone with a config of its own, and everything that Snakemake said there."""

    lab: Lab
    folder: Path
    image: str
    bucket: str
    config: dict
    text: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        clone(self.folder)
        (self.folder / "lab.yaml").write_text(yaml.safe_dump(self.config))
        said(["git", "add", "lab.yaml"], cwd=self.folder)
        said([sys.executable, "envs/link_profiles.py"], cwd=self.folder, env=self.env())

    def env(self, **changes: str | None) -> dict[str, str]:
        """The environment of a person who has set an account up; None takes a variable away."""
        home = self.folder.parent / f"{self.folder.name}-home"
        made = self.lab.env | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "KILN_IMAGE": self.image,
            "KILN_BUCKET": self.bucket,
        }
        return {k: v for k, v in (made | changes).items() if v is not None}

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Snakemake, begun."""
        command = ["snakemake", *PROFILE, "--configfile", "lab.yaml", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=env or self.env(), **options)

    def run(self, *arguments: str, code: int | None = 0, **changes: str | None) -> str:
        """Snakemake, to its end; returns what it said. AssertionError for another exit code than this (None: any)."""
        process = self.start(*arguments, env=self.env(**changes))
        self.text, _ = process.communicate(timeout=900)
        assert code is None or process.returncode == code, self.text
        return self.text

    def run_until(self, *arguments: str, done: Callable[[], bool]) -> str:
        """Snakemake until something is so, then killed at once: as a driver's machine that vanishes."""
        process = self.start(*arguments)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or []))
        reader.start()
        try:
            while process.poll() is None and not done():
                time.sleep(1)
        finally:
            process.kill()
            process.wait()
            reader.join(60)
        self.text = "".join(lines)
        return self.text


def upload(lab: Lab, folder: Path, prefix: str) -> None:
    """Every file below a folder to an s3:// prefix."""
    s3 = lab.client("s3")
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        bucket, key = storage.split_s3(storage.join(prefix, str(path.relative_to(folder))))
        s3.upload_file(str(path), bucket, key)


def objects(lab: Lab, bucket: str, prefix: str = "") -> dict[str, str]:
    """Keys of a bucket and their ETags."""
    pages = lab.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {o["Key"]: o["ETag"] for page in pages for o in page.get("Contents", [])}


def matching(keys: Iterable[str], *parts: str) -> list[str]:
    """Keys that hold all these parts, in order."""
    return sorted(k for k in keys if all(p in k for p in parts))
