"""Commands of jobs: the same list of arguments for a rule's shell line, an array job and a person."""

import os
import shlex
import string
import subprocess

import pytest
import yaml

from kiln.workflow import commands
from kiln.workflow.run import Run
from tests import ROOT


@pytest.fixture
def run():
    return Run(yaml.safe_load((ROOT / "config/config.yaml").read_text()))


def printed(line, **values):
    """Return a shell line as Snakemake fills it in."""

    class Fill(string.Formatter):
        def get_field(self, name, args, kwargs):
            return kwargs[name], name

        def format_field(self, value, spec):
            return shlex.quote(value) if spec == "q" else value

    return Fill().vformat(line, (), values)


def test_an_embed_command_is_the_same_in_a_rule_and_in_an_array_job(run):
    command = commands.embed_command(run, run.dataset("naip"))
    values = {"<weights>": "w eights", "<partition>": "nd-2019", "<shard>": "a-1", "<output>": "o ut", "<threads>": "3"}
    line = printed(
        commands.shell_line(command, ""),
        **{"input.weights": "w eights", "wildcards.partition": "nd-2019", "wildcards.shard": "a-1", "output": "o ut",
           "threads": "3", "params.setup": ""},
    )  # fmt: skip
    assert shlex.split(line) == commands.fill(command, values)
    flags = printed(
        commands.rule_flags(commands.embed_flags(run, run.dataset("naip"))), partition="nd-2019", shard="a-1"
    )
    assert shlex.split(flags) == commands.fill(command, values)[3:-6]


@pytest.mark.parametrize("text", ["plain", "with space", "{braces}", "quote'd", "$HOME", "a{wildcards.x}b", ""])
def test_config_values_reach_the_script_unchanged(text):
    line = printed(
        commands.shell_line(["printf", "%s|", text, f"{text}/<partition>"], ""),
        **{"wildcards.partition": "p", "params.setup": "X=1 "},
    )
    result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert result.stdout == f"{text}|{text}/p|"


@pytest.mark.parametrize("inherited", ["", "/other"])
def test_a_command_finds_the_code_from_any_other_folder(tmp_path, monkeypatch, inherited):
    code = tmp_path / "the code"
    code.mkdir()
    monkeypatch.chdir(code)
    assert commands.setup(str(code), is_module=False) == ""
    monkeypatch.chdir(tmp_path)
    line = commands.setup(str(code), is_module=True) + "env | grep -e ^PYTHONPATH= -e ^KILN_DRIVER_PID="
    result = subprocess.run(
        ["bash", "-uc", line], env={"PATH": "/usr/bin:/bin", "PYTHONPATH": inherited}, capture_output=True, text=True
    )
    values = dict(row.split("=", 1) for row in result.stdout.splitlines())
    assert values == {
        "PYTHONPATH": f"{code}:{inherited}".rstrip(":"),
        "KILN_DRIVER_PID": str(os.getpid()),
    }


def test_every_command_names_a_script_that_exists(run):
    naip = run.dataset("naip")
    built = [
        commands.encoder_weights_command(run), commands.embed_command(run, naip),
        commands.index_command(run), commands.contact_sheet_command(run),
        commands.coverage_command(run), commands.summary_command(run), commands.estimate_command(run),
    ]  # fmt: skip
    for command in built:
        assert command[:2] == ["python", "-m"]
        assert (ROOT / (command[2].replace(".", "/") + ".py")).is_file(), command[2]


def test_a_token_without_a_value_is_a_bug(run):
    with pytest.raises(KeyError):
        commands.fill(commands.embed_command(run, run.dataset("naip")), {})
