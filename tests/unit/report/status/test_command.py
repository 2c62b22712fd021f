"""The command that a run keeps: written and read again, and its flags where a person types them."""

from pathlib import Path

import pytest

from kiln.errors import ConfigError, SourceError
from kiln.formats.json_digest import read_with_digest
from kiln.io import storage
from kiln.report.status.command import NAME, RunCommand

COMMAND = RunCommand(
    config_files=["/run/config/a b.yaml"],
    config=["years=[2021]"],
    options=["--profile", "slurm"],
    snakefile="/kiln/Snakefile",
    partitions=["nd-*"],
    allow_missing=True,
    price_per_hour=1.25,
)


def write_snakefile(name="Snakefile"):
    storage.write_bytes(name, b"")
    return str(Path(name).absolute())


def test_a_written_command_is_read_again(here):
    COMMAND.write("results/sample")
    assert RunCommand.read("results/sample") == COMMAND
    unknown = RunCommand(config_files=[], config=[], options=[], partitions=[])
    unknown.write("results/sample")
    assert RunCommand.read("results/sample") == unknown
    assert unknown.price_per_hour is None


def test_the_file_is_named_after_the_command_and_readable(here):
    COMMAND.write("results/sample")
    assert read_with_digest(Path("results/sample/command.json").read_bytes()) == {
        "config_files": ["/run/config/a b.yaml"],
        "config": ["years=[2021]"],
        "options": ["--profile", "slurm"],
        "snakefile": "/kiln/Snakefile",
        "partitions": ["nd-*"],
        "allow_missing": True,
        "price_per_hour": 1.25,
    }


def test_a_command_on_object_storage_is_read_again(bucket):
    COMMAND.write(f"{bucket}/results/sample")
    assert RunCommand.read(f"{bucket}/results/sample") == COMMAND


@pytest.mark.parametrize(
    "text",
    ["", '{"config": [', "[]", "null", '{"machine": "x"}', "snakemake --cores 2"],
    ids=["empty", "cut off", "list", "null", "other keys", "no JSON"],
)
def test_another_file_is_an_error_that_names_it(here, text):
    storage.write_bytes(f"results/sample/{NAME}", text.encode())
    with pytest.raises(ConfigError, match=rf"^results/sample/{NAME}: expected the command of a run, .* Delete it\.$"):
        RunCommand.read("results/sample")


def test_bytes_that_are_no_text_are_an_error(here):
    storage.write_bytes(f"results/sample/{NAME}", b"\xff\xfe{")
    with pytest.raises(ConfigError, match=f"results/sample/{NAME}"):
        RunCommand.read("results/sample")


def test_an_absent_command_is_an_error(here):
    with pytest.raises(SourceError, match=f"results/sample/{NAME}: does not exist"):
        RunCommand.read("results/sample")


def test_a_command_of_an_earlier_version_is_read(here):
    """Before a run kept what it is limited to."""
    text = '{"config_files": [], "config": [], "options": [], "snakefile": "", "price_per_hour": null}'
    storage.write_bytes(f"results/sample/{NAME}", text.encode())
    found = RunCommand.read("results/sample")
    assert (list(found.partitions), found.allow_missing) == ([], False)


def test_files_that_this_machine_does_not_have_are_named(here):
    command = RunCommand(["/absent/a.yaml", write_snakefile("b.yaml")], snakefile=write_snakefile())
    assert command.missing_files == ["/absent/a.yaml"]
    assert RunCommand(snakefile="/absent/Snakefile").missing_files == ["/absent/Snakefile"]
    assert RunCommand().missing_files == []


# ---------------------------------------------------------------------------------------------------------------- flags


def test_an_unknown_command_has_no_flags(here):
    assert RunCommand().flags() == []
    write_snakefile()
    assert RunCommand().flags() == []


def test_paths_below_the_working_folder_are_relative(here, tmp_path_factory):
    elsewhere = str(tmp_path_factory.mktemp("else where") / "b.yaml")
    command = RunCommand([str(here / "config" / "a.yaml"), elsewhere], snakefile=str(here / "deep" / "Snakefile"))
    assert command.flags() == ["--snakefile", "deep/Snakefile", "--configfile", "config/a.yaml", elsewhere]


def test_a_folder_with_the_same_beginning_is_not_below(here):
    neighbour = f"{here}-2/a.yaml"
    assert RunCommand([neighbour]).flags() == ["--configfile", neighbour]


@pytest.mark.parametrize("name", ["Snakefile", "workflow/Snakefile"])
def test_the_snakefile_that_snakemake_finds_is_omitted(here, name):
    assert RunCommand(snakefile=write_snakefile(name)).flags() == []


def test_a_snakefile_elsewhere_is_given(here, tmp_path_factory):
    write_snakefile()
    code = tmp_path_factory.mktemp("code")
    for name in ("Snakefile", "workflow/Snakefile"):
        assert RunCommand(snakefile=str(code / name)).flags() == ["--snakefile", str(code / name)]


def test_a_snakefile_that_another_one_hides_is_given(here):
    hidden = write_snakefile("workflow/Snakefile")
    write_snakefile("Snakefile")
    assert RunCommand(snakefile=hidden).flags() == ["--snakefile", "workflow/Snakefile"]


def test_flags_stand_in_an_order_that_snakemake_parses(here):
    """--configfile and --config take all words up to the next flag."""
    assert COMMAND.flags() == [
        *("--snakefile", "/kiln/Snakefile"),
        *("--profile", "slurm"),
        *("--configfile", "/run/config/a b.yaml"),
        *("--config", "years=[2021]"),
    ]
    assert RunCommand(options=["--profile", "slurm", "--workflow-profile", "x"]).flags() == [
        *("--profile", "slurm", "--workflow-profile", "x")
    ]
