"""The layers of the packages: allowed imports, also inside functions, and modules that a dry run never imports."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

LAYERS = (  # from the bottom; a package imports only packages of earlier lines, and itself
    ("errors",),
    ("io",),
    ("formats",),
    ("model", "archives"),
    ("engine",),
    ("product",),
    ("explorer", "analysis"),
    ("report", "workflow"),
    ("aws", "sample"),
    ("cli",),
    ("scripts",),
)
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
ABOVE_ALL = {"kiln", "kiln.__main__", "kiln.api"}  # `import kiln` shows the public API
LIGHT = (  # imported by every dry run and every worker
    *("kiln", "kiln.errors", "kiln.formats.fingerprint", "kiln.archives.registry", "kiln.model.identity"),
    *(f"kiln.archives.{name}.layout" for name in ("worldcover", "naip", "sentinel2")),
    *(f"kiln.workflow.{name}" for name in ("paths", "dataset", "run", "commands", "config")),
)
HEAVY = ("torch", "rasterio", "geopandas", "lancedb", "pyarrow", "numpy", "boto3", "pydantic")


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, Path]:
    """Return every module of the library and the scripts, by its dotted name."""
    return {module_name(p.relative_to(ROOT)): p for f in ("kiln", "scripts") for p in (ROOT / f).rglob("*.py")}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return every node of a module's syntax tree."""
    return list(ast.walk(ast.parse(path.read_text())))


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of Kiln that a module imports, also inside functions."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in ("kiln", "scripts"))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("kiln", "scripts"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else node.module


def package(module: str) -> str:
    parts = module.split(".")
    return parts[0] if parts[0] == "scripts" else parts[1] if len(parts) > 1 else ""


def allowed(importer: str, imported: str) -> bool:
    own, other = package(importer), package(imported)
    if importer in ABOVE_ALL or own == other or imported == "kiln" or imported == "kiln.version":
        return True
    if RANK[other] >= RANK[own]:
        return False
    if own == "engine":
        return other != "archives"
    if own == "explorer":
        return other not in ("engine", "model") and (other != "archives" or imported == "kiln.archives.registry")
    if imported.startswith("kiln.explorer.web"):
        return own == "cli"
    return True


def violations(known: dict[str, Path]) -> list[str]:
    return sorted(
        f"{importer} imports {imported}"
        for importer, path in known.items()
        for imported in set(imports(path, known))
        if not allowed(importer, imported)
    )


def test_packages_import_only_packages_of_lower_layers():
    assert violations(modules()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kiln/io/bad.py", "from kiln.formats import vectors"),
        ("kiln/model/bad.py", "import kiln.archives.registry"),
        ("kiln/engine/bad.py", "def f():\n    from kiln.archives.naip import source\n"),
        ("kiln/explorer/bad.py", "from kiln.model.identity import RECIPE"),
        ("kiln/explorer/worse.py", "def f():\n    from kiln.archives.naip import source\n"),
        ("kiln/report/bad.py", "from kiln.explorer.web import server"),
        ("kiln/workflow/bad.py", "from kiln.aws import batch"),
        ("kiln/cli/bad.py", "import scripts.merge"),
    ],
)
def test_an_import_of_a_higher_layer_is_found(tmp_path, module, line):
    path, name = tmp_path / "module.py", module_name(Path(module))
    path.write_text(line)
    found = violations({**modules(), name: path})
    assert found, "the import is not reported"
    assert all(v.startswith(name) for v in found)


def test_no_two_classes_share_a_name():
    names = Counter(
        node.name
        for path in modules().values()
        for node in nodes(path)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    configs = len([m for m in modules() if m.endswith(".config") or m.endswith(".config_model")])
    assert names.pop("Config") <= configs, "one Config per archive, and that of the run"
    assert {name: count for name, count in names.items() if count > 1} == {}


def test_no_argparse_below_the_command_line():
    users = [
        m
        for m, p in modules().items()
        if package(m) not in ("cli", "scripts") and not m.endswith("__main__") and "argparse" in p.read_text()
    ]
    assert users == []


@pytest.mark.parametrize("module", LIGHT)
def test_modules_of_a_dry_run_import_nothing_heavy(module):
    code = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_scripts_are_thin():
    assert {p.name: n for p in (ROOT / "scripts").glob("*.py") if (n := len(p.read_text().splitlines())) >= 100} == {}


def test_every_unit_test_is_collected(pytestconfig):
    skipped = pytestconfig.getini("norecursedirs")
    folders = {f for p in (ROOT / "tests/unit").rglob("test_*.py") for f in p.relative_to(ROOT).parts[:-1]}
    assert [f for f in sorted(folders) if any(fnmatch(f, pattern) for pattern in skipped)] == []
