"""The command `kiln`: its list of subcommands, what it imports, and errors for unknown ones."""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest

from kiln.cli import main as dispatcher
from kiln.cli.main import COMMANDS, main
from kiln.version import __version__
from tests import ROOT


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_a_module_with_a_main(name: str) -> None:
    module, summary = COMMANDS[name]
    assert find_spec(module), module
    assert summary[0].islower()
    assert callable(importlib.import_module(module).main)


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: kiln COMMAND ..."
    assert [line.strip().partition("  ")[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


def test_help_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["aws", "-h"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "aws submit" in text
    assert "explore" not in text


@pytest.mark.parametrize("words", [[], ["aws"]])
def test_without_a_subcommand_help_goes_to_stderr(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: kiln")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"kiln {__version__}\n"


@pytest.mark.parametrize(
    ("words", "got", "advice"),
    [
        (["serch", "--db", "x"], "'serch'", "Did you mean `kiln search`?"),
        (["up"], "'up'", "Did you mean `kiln aws up`?"),
        (["aws", "sumbit", "naip"], "'aws sumbit'", "Did you mean `kiln aws submit`?"),
        (["quux"], "'quux'", "`kiln --help` shows what each does."),
        (["--db", "x"], "'--db'", "`kiln --help` shows what each does."),
    ],
)
def test_an_unknown_subcommand_is_an_error(
    words: list[str], got: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: kiln: expected one of ")
    assert err.endswith(f", got {got}. {advice}\n")


@pytest.mark.parametrize(
    ("words", "module", "rest"),
    [
        (["search", "--db", "x"], "kiln.cli.search", ["--db", "x"]),
        (["aws", "up", "--help"], "kiln.cli.aws.up", ["--help"]),
        (["export"], "kiln.cli.export", []),
    ],
)
def test_the_rest_goes_to_the_subcommand(
    words: list[str], module: str, rest: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def import_module(name: str) -> SimpleNamespace:
        return SimpleNamespace(main=lambda argv: calls.append((name, argv)))

    monkeypatch.setattr(dispatcher.importlib, "import_module", import_module)
    main(words)
    assert calls == [(module, rest)]


def test_python_m_kiln_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "kiln", "--version"], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == f"kiln {__version__}\n"
