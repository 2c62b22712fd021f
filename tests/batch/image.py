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
    """Its name, the digest of the tree it was built from, its size in bytes, and that of its base."""

    name: str
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
    arguments = {"BASE": lab.base, "DEVICE": "cpu", "VERSION": VERSION, "REVISION": tree}
    given = [word for k, v in arguments.items() for word in ("--build-arg", f"{k}={v}")]
    lab.tool(
        "buildah", "bud", "--isolation", "chroot", "--layers", "--file", "envs/Dockerfile", "--tag", name, *given, ".",
        cwd=folder,
    )  # fmt: skip
    return Image(name, tree, size_of(lab, name), size_of(lab, lab.base))


def size_of(lab: Lab, image: str) -> int:
    """Bytes of an image."""
    return int(lab.tool("podman", "image", "inspect", "--format", "{{.Size}}", image))
