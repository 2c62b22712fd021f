"""Documents name only files, modules, names and config keys that exist, and avoid the project's retired words."""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from kiln.cli.main import COMMANDS
from kiln.version import __version__
from tests import ROOT

GENERATED = re.compile(r"<!-- generated: .*?<!-- end of generated part -->", re.DOTALL)
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config/README.md", *ROOT.glob("docs/**/*.md")]
)
TEXTS = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/report/*.rst"))]
RETIRED = [
    *("told", "tells", "said", "says", "unsaid", "mine", "kept", "beside", "afar", "mend", "mends", "mended"),
    *("road", "house", "cards?", "shares?", "LEAST", "MOST", "sound", "asked", "wanted", "whole"),
    *("as none", "known to be", "whatever"),
]
TOP = ("kiln", "scripts", "rules", "config", "profiles", "envs", "docs", "tests")  # folders
SUFFIXES = ("py", "yaml", "json", "smk")  # of files whose names look like config keys
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MODULE = re.compile(rf"python -m ((?:{'|'.join(TOP)})(?:\.\w+)*)")
PATH = re.compile(rf"(?<![\w./:-])((?:{'|'.join(TOP)})/[\w./-]*|[A-Z][\w]*\.(?:md|cff)|Snakefile|Makefile|LICENSE)")
DOTTED = re.compile(r"(?:kiln|scripts|tests)(?:\.\w+)+")


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


@cache
def read(path: Path) -> str:
    return path.read_text()


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub creates them."""
    headings = re.findall(r"^#+ (.+)$", read(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def module_file(name: str) -> Path | None:
    """Return the file of a module or package, or None."""
    path = ROOT.joinpath(*name.split("."))
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def has_name(dotted: str) -> bool:
    """Return whether a dotted name is a module, or a word in the longest module that it begins with."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        if file := module_file(".".join(parts[:count])):
            return all(re.search(rf"\b{part}\b", read(file)) for part in parts[count:])
    return False


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(document: Path) -> None:
    wrong = []
    for target in LINK.findall(read(document)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_paths_exist(document: Path) -> None:
    paths = {path.rstrip(".") for path in PATH.findall(read(document))}
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_modules_and_names_exist(document: Path) -> None:
    text = read(document)
    commands = {name for name in MODULE.findall(text) if not module_file(name)}
    names = {code for code in CODE.findall(text) if DOTTED.fullmatch(code) and not has_name(code)}
    assert not sorted(commands | names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_commands_exist(document: Path) -> None:
    used = set(re.findall(r"(?:^ {4}|`|\$\()kiln ((?:aws )?[a-z]+)", read(document), re.MULTILINE))
    assert used <= COMMANDS.keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=ids(DOCUMENTS))
def test_config_keys_exist(document: Path) -> None:
    config = yaml.safe_load(read(ROOT / "config/config.yaml"))
    wrong = []
    for code in CODE.findall(GENERATED.sub("", read(document))):
        keys = code.split(":")[0].split(".")
        is_key = len(keys) > 1 and isinstance(config.get(keys[0]), dict) and keys[-1] not in SUFFIXES
        if not is_key or not all(re.fullmatch(r"\w+", key) for key in keys):
            continue
        value = config
        for key in keys:
            value = value.get(key, KeyError) if isinstance(value, dict) else KeyError
        if value is KeyError:
            wrong.append(code)
    assert not wrong


@pytest.mark.parametrize("document", TEXTS, ids=ids(TEXTS))
def test_retired_words_are_absent(document: Path) -> None:
    text = re.sub(r"https?://\S+|`[^`\n]+`|data\s+cards?", "", GENERATED.sub("", read(document)))
    found = re.findall(rf"\b(?:{'|'.join(RETIRED)})\b", text)
    found += [word for word in re.findall(r"\b[A-Za-z]+\b", text) if word.lower() in RETIRED and word not in found]
    assert not found


def test_the_walk_through_of_the_toy_archive_quotes_its_code() -> None:
    def lines(code: str) -> str:
        """Return the code without indents and empty lines."""
        return "\n".join(line.strip() for line in code.splitlines() if line.strip())

    code = lines("\n".join(read(path) for path in sorted((ROOT / "tests/support/toy_archive").glob("*.py"))))
    quoted = re.findall(r"```py\n(.*?)```", read(ROOT / "docs/add-an-archive.md"), re.DOTALL)
    assert quoted
    assert not [block for block in quoted if lines(block) not in code]


def test_the_newest_entry_of_the_changelog_is_the_version() -> None:
    newest = re.findall(r"^## \[(\d[^\]]*)\]", read(ROOT / "CHANGELOG.md"), re.MULTILINE)[0]
    assert newest == __version__
