"""The environments: every package is pinned, pip and conda agree, and unwanted packages are absent."""

import re
from importlib.metadata import PackageNotFoundError, distribution

import yaml
from packaging.requirements import Requirement

from tests import ROOT

ENVS = ROOT / "envs"


def requirements(name: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ENVS / name).read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for pin in requirements("constraints.txt"):
        found.setdefault(canonical(pin.name), []).append(pin)
    return found


def closure(*files: str) -> set[str]:
    """Return the names of all direct and indirect requirements; assert that each is installed as pinned."""
    pinned, seen, todo = pins(), set(), [r for f in files for r in requirements(f)]
    while todo:
        need = todo.pop()
        name = canonical(need.name)
        if (name, tuple(need.extras)) in seen or (need.marker and not need.marker.evaluate({"extra": ""})):
            continue
        seen.add((name, tuple(need.extras)))
        assert name in pinned, f"{name} is not in constraints.txt"
        pin = next(p for p in pinned[name] if not p.marker or p.marker.evaluate())
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise AssertionError(f"{name} is not installed") from None
        assert pin.specifier.contains(found.version.partition("+")[0]), f"{name} {found.version} is not {pin}"
        for inner in found.requires or []:
            child = Requirement(inner)
            if not child.marker or any(child.marker.evaluate({"extra": e}) for e in ["", *need.extras]):
                child.marker = None
                todo.append(child)
    return {name for name, _ in seen}


def test_every_dependency_is_pinned_and_installed_as_pinned() -> None:
    assert len(closure("requirements.txt", "requirements-test.txt")) > 100


def test_both_builds_of_torch_are_covered() -> None:
    pinned = pins()
    assert str(pinned["torch"][0].specifier) == "==2.13.0"
    for cuda in ("triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"):
        assert cuda in pinned
    assert "torchvision" not in pinned
    assert "--hash" not in (ENVS / "constraints.txt").read_text()


def test_required_versions_are_pinned() -> None:
    versions = {r.name: str(r.specifier) for r in requirements("requirements.txt")}
    assert versions["snakemake-storage-plugin-s3"] == "==0.3.6"
    assert versions["snakemake-executor-plugin-aws-batch"] == "==0.2.1"
    assert tuple(map(int, versions["snakemake"].removeprefix("==").split("."))) >= (9, 25)


def test_conda_environment_takes_the_same_pins() -> None:
    env = yaml.safe_load((ENVS / "kiln.yaml").read_text())
    assert env["channels"][0] == "conda-forge"
    assert "python=3.11" in env["dependencies"]
    listed = next(d["pip"] for d in env["dependencies"] if isinstance(d, dict))
    listed = [Requirement(p) for p in listed]
    pinned = {canonical(p.name) for p in listed}
    constraints, needed = pins(), closure("requirements.txt")
    for pin in listed:
        assert pin.specifier in [p.specifier for p in constraints[canonical(pin.name)]], f"{pin}: make lock"
    cuda = {n for n in constraints if n.startswith(("nvidia-", "cuda-", "triton"))} - {"nvidia-ml-py"}
    assert needed - cuda == pinned & needed
    assert "pytest" not in pinned


def test_hooks_run_the_tools_that_make_lint_runs() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    tools = [hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in local["hooks"]]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    assert local["repo"] == "local", "hooks fetch nothing"
    for tool in tools:
        assert f"\t{tool} " in lint
        assert canonical(tool) in {canonical(r.name) for r in requirements("requirements-test.txt")}
