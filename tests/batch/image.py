"""Kiln's image, built in the lab from the working tree."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.batch.driver import clone
from tests.batch.lab import ROOT, Lab, make_base, run_command

VERSION = "0.0.test"


@dataclass(frozen=True)
class Image:
    """An image: its name, the folder and the tree it was built from, its size and that of its base in bytes."""

    name: str
    folder: Path
    revision: str
    size: int
    base: int


def build_image(lab: Lab, folder: Path) -> Image:
    """Build the image and its base without a package index, from wheels that `make wheels` writes."""
    if sys.version_info[:2] != (3, 11):
        raise RuntimeError(
            f"the lab's base image has Python 3.11; expected to run under Python 3.11, got {sys.version.split()[0]}"
        )
    make_base(lab.folder, lab.env)
    run_command(["make", "--no-print-directory", "wheels"], cwd=ROOT)
    tree = clone(folder)
    name = f"localhost/kiln-test:{tree[:12]}"
    for wheel in (ROOT / "envs/wheels").glob("*.whl"):
        shutil.copy2(wheel, folder / "envs/wheels")
    build(lab, folder, name, tree)
    return Image(name, folder, tree, size_of(lab, name), size_of(lab, lab.base))


def build(lab: Lab, folder: Path, name: str, revision: str) -> None:
    """Build the Dockerfile of a tree, with the builder's cache."""
    arguments = {"BASE": lab.base, "DEVICE": "cpu", "VERSION": VERSION, "REVISION": revision}
    flags = [word for k, v in arguments.items() for word in ("--build-arg", f"{k}={v}")]
    lab.tool(
        "buildah", "bud", "--isolation", "chroot", "--layers", "--file", "envs/Dockerfile", "--tag", name, *flags, ".",
        cwd=folder,
    )  # fmt: skip


def size_of(lab: Lab, image: str) -> int:
    """Return the size of an image in bytes."""
    return int(lab.tool("podman", "image", "inspect", "--format", "{{.Size}}", image))
