"""Kiln's image, built in the lab from the working tree."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.batch.driver import clone
from tests.batch.lab import ROOT, Lab, make_base, said

VERSION = "0.0.test"


@dataclass(frozen=True)
class Image:
    """Its name, the folder it was built in, the digest of that tree, its size in bytes, and that of its base."""

    name: str
    folder: Path
    revision: str
    size: int
    base: int


def built(lab: Lab, folder: Path) -> Image:
    """Build it and its base, without an index, from wheels that this machine's pip puts into envs/wheels first."""
    if sys.version_info[:2] != (3, 11):
        raise RuntimeError(
            f"the lab's base has Python 3.11, and wheels of Python {sys.version.split()[0]} do not fit it"
        )
    make_base(lab.folder, lab.env)
    said(["make", "--no-print-directory", "wheels"], cwd=ROOT)
    tree = clone(folder)
    name = f"localhost/kiln-test:{tree[:12]}"
    for wheel in (ROOT / "envs/wheels").glob("*.whl"):
        shutil.copy2(wheel, folder / "envs/wheels")
    build(lab, folder, name, tree)
    return Image(name, folder, tree, size_of(lab, name), size_of(lab, lab.base))


def build(lab: Lab, folder: Path, name: str, revision: str) -> None:
    """Run the Dockerfile of a tree, what is in the builder's cache taken from there."""
    arguments = {"BASE": lab.base, "DEVICE": "cpu", "VERSION": VERSION, "REVISION": revision}
    given = [word for k, v in arguments.items() for word in ("--build-arg", f"{k}={v}")]
    lab.tool(
        "buildah", "bud", "--isolation", "chroot", "--layers", "--file", "envs/Dockerfile", "--tag", name, *given, ".",
        cwd=folder,
    )  # fmt: skip


def size_of(lab: Lab, image: str) -> int:
    """Bytes of an image."""
    return int(lab.tool("podman", "image", "inspect", "--format", "{{.Size}}", image))
