"""A driver: a fresh clone of the project, in which Snakemake submits jobs to the lab."""

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
from tests.batch.lab import ROOT, Lab, run_command

# The profile checks jobs every 10 seconds, which suits longer jobs than these.
PROFILE = ["--profile", "aws-batch", "--seconds-between-status-checks", "2"]


def clone(folder: Path) -> str:
    """Copy the working tree to a new repository; return the digest of the repository's tree."""
    listed = run_command(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    for command in (["init", "-q"], ["add", "--all"]):
        run_command(["git", *command], cwd=folder)
    return run_command(["git", "write-tree"], cwd=folder).strip()


@dataclass
class Driver:
    """A clone with its own config. `text` is the output of the last Snakemake run there."""

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
        run_command(["git", "add", "lab.yaml"], cwd=self.folder)

    def env(self, **changes: str | None) -> dict[str, str]:
        """Return the environment of a user with a complete setup. The value None removes a variable."""
        home = self.folder.parent / f"{self.folder.name}-home"
        env = self.lab.env | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "KILN_IMAGE": self.image,
            "KILN_BUCKET": self.bucket,
        }
        return {k: v for k, v in (env | changes).items() if v is not None}

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start Snakemake."""
        command = ["snakemake", *PROFILE, "--configfile", "lab.yaml", *arguments]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=env or self.env(), **options)

    def run(self, *arguments: str, code: int | None = 0, **changes: str | None) -> str:
        """Run Snakemake and return its output. Raise AssertionError if its exit code is not `code` (None: any)."""
        process = self.start(*arguments, env=self.env(**changes))
        self.text, _ = process.communicate(timeout=900)
        assert code is None or process.returncode == code, self.text
        return self.text

    def run_until(self, *arguments: str, done: Callable[[], bool]) -> str:
        """Run Snakemake until `done` is True, then kill it, as if the driver's machine failed. Return its output."""
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
    """Upload every file below a folder to an s3:// prefix."""
    s3 = lab.client("s3")
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        bucket, key = storage.split_s3(storage.join(prefix, str(path.relative_to(folder))))
        s3.upload_file(str(path), bucket, key)


def objects(lab: Lab, bucket: str, prefix: str = "") -> dict[str, str]:
    """Return the keys of a bucket and their ETags."""
    pages = lab.client("s3").get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {o["Key"]: o["ETag"] for page in pages for o in page.get("Contents", [])}


def matching(keys: Iterable[str], *parts: str) -> list[str]:
    """Return the keys that contain all these parts, sorted."""
    return sorted(k for k in keys if all(p in k for p in parts))
