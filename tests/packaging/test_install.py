"""`pip install .` installs the package and the command `kiln`, the logger plugin and every data file."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from kiln.cli.main import COMMANDS
from kiln.version import __version__
from tests import ROOT

PACKAGES = ("kiln", "snakemake_logger_plugin_kiln")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE", "envs/requirements.txt")
TIMEOUT_S = 300  # of a command, on a busy machine


@dataclass(frozen=True)
class Installed:
    """A fresh environment with Kiln installed from its wheel; its dependencies are those of this environment."""

    folder: Path
    packages: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment in an empty folder, and return what it prints."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments],
            cwd=empty, env=environment, text=True, capture_output=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--quiet", "--no-index", "--no-deps"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads."""
    tree = tmp_path_factory.mktemp("tree")
    for name in (*PACKAGES, "scripts"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_FILES:
        (tree / name).parent.mkdir(exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    return tree


def install(folder: Path, *arguments: str) -> Installed:
    """Make an environment in a folder, and install what the arguments of pip name."""
    venv.create(folder, symlinks=True)
    python = str(folder / "bin/python")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, *arguments], check=True, timeout=TIMEOUT_S)
    return Installed(folder, packages)


@pytest.fixture(scope="module")
def installed(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Build the wheel of a copy of the tree, without a network, and install it."""
    wheels = tmp_path_factory.mktemp("wheels")
    build = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", str(wheels), str(tree)]
    subprocess.run(build, check=True, timeout=TIMEOUT_S)
    (wheel,) = wheels.glob("kiln-*.whl")
    return install(tmp_path_factory.mktemp("venv"), str(wheel))


@pytest.fixture(scope="module")
def editable(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install a copy of the tree as `make` installs a checkout."""
    return install(tmp_path_factory.mktemp("editable"), "--no-build-isolation", "--editable", str(tree))


def test_kiln_is_imported_from_the_environment(installed: Installed) -> None:
    code = "import kiln, kiln.aws.stack; print(kiln.__version__, kiln.__file__); kiln.aws.stack.template()"
    version, file = installed.run("python", "-c", code).split()
    assert version == __version__
    assert Path(file) == installed.packages / "kiln/__init__.py"


def test_every_file_of_the_packages_is_installed(installed: Installed) -> None:
    def files(root: Path) -> set[str]:
        paths = [path for package in PACKAGES for path in (root / package).rglob("*")]
        return {p.relative_to(root).as_posix() for p in paths if p.is_file() and "__pycache__" not in p.parts}

    assert files(installed.packages) == files(ROOT)
    assert not (installed.packages / "scripts").exists()


def snakemake_loggers(installed: Installed) -> list[str]:
    code = "from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry as R; import json, sys; "
    code += "print(json.dumps([R().get_registered_plugins(), 'kiln' in sys.modules]))"
    names, is_kiln_loaded = json.loads(installed.run("python", "-c", code))
    assert not is_kiln_loaded, "the Snakefile chooses the version of Kiln, after the plugins are loaded"
    return names


def test_snakemake_finds_the_logger_plugin(installed: Installed) -> None:
    assert "kiln" in snakemake_loggers(installed)


def test_snakemake_finds_the_logger_plugin_of_an_editable_install(editable: Installed) -> None:
    assert "kiln" in snakemake_loggers(editable)


def test_the_metadata_names_version_licence_and_pinned_dependencies(installed: Installed) -> None:
    (info,) = installed.packages.glob("kiln-*.dist-info")
    distribution = PathDistribution(info)
    assert distribution.version == __version__
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    lines = [line.partition("#")[0].strip() for line in (ROOT / "envs/requirements.txt").read_text().splitlines()]
    assert distribution.requires == [line for line in lines if line]


def test_the_command_lists_its_subcommands(installed: Installed) -> None:
    text = installed.run("kiln", "--help")
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in text
        assert summary in text
    assert installed.run("kiln", "--version") == f"kiln {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_shows_its_help(installed: Installed, name: str) -> None:
    assert installed.run("kiln", *name.split(), "--help").startswith(f"usage: kiln {name} ")


def test_help_imports_nothing_heavy(installed: Installed) -> None:
    code = (
        "import json, sys\nfrom kiln.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules = json.loads(installed.run("python", "-c", code).splitlines()[-1])
    assert not {"torch", "numpy", "pyarrow", "boto3", "rasterio", "lancedb"} & set(modules)
