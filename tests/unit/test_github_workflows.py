"""The workflows of GitHub call every check of `.ci/run`, pin their actions, and declare few permissions."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import Marker

from tests import ROOT

FILES = sorted(ROOT.glob(".github/workflows/*.y*ml"))
MAKE = re.compile(r"\bmake ([\w-]+)")
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*")  # a commit, and the version that it is
WORKFLOWS = pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)


def load(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text())


def jobs(*files: Path) -> list[dict[str, Any]]:
    return [job for file in files for job in load(file)["jobs"].values()]


def commands() -> str:
    """Return the commands of all steps of all workflows."""
    return "\n".join(step.get("run", "") for job in jobs(*FILES) for step in job["steps"])


def supported_pythons() -> set[str]:
    """Return the versions of Python for which constraints.txt is solved."""
    (environment,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["environments"]
    platform = {"sys_platform": "linux", "platform_machine": "x86_64"}
    versions = [f"3.{minor}" for minor in range(30)]
    return {v for v in versions if Marker(environment).evaluate({"python_version": v, **platform})}


def test_make_targets_exist() -> None:
    rules = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = MAKE.findall(commands())
    assert called
    assert set(called) <= set(rules)


def test_every_check_has_a_job() -> None:
    called = set(MAKE.findall(commands()))
    assert {"lint", "test-quick", "image"} <= called
    assert set(MAKE.findall((ROOT / ".ci/run").read_text())) <= called


def test_every_supported_python_is_used() -> None:
    steps = chain.from_iterable(job["steps"] for job in jobs(*FILES))
    named = {step["with"]["python-version"] for step in steps if "python-version" in step.get("with", {})}
    matrices = [job.get("strategy", {}).get("matrix", {}) for job in jobs(*FILES)]
    listed = set(chain.from_iterable(matrix.get("python", []) for matrix in matrices))
    assert {version for version in named if "$" not in version} | listed == supported_pythons()


@WORKFLOWS
def test_actions_are_pinned(file: Path) -> None:
    uses = re.findall(r"\buses: *(.*)", file.read_text())
    assert uses
    assert [line for line in uses if not PINNED.fullmatch(line)] == []


@WORKFLOWS
def test_permissions_and_times_are_limited(file: Path) -> None:
    assert load(file)["permissions"] == {}
    for job in jobs(file):
        assert job["permissions"]
        assert job["timeout-minutes"] <= 60


@WORKFLOWS
def test_nothing_may_write(file: Path) -> None:
    assert "pull_request_target" not in file.read_text()
    assert [job for job in jobs(file) if "write" in job["permissions"].values()] == []
