"""The commands for what is left of runs."""

import shlex
from pathlib import Path

import pytest

from kiln.report.status import failures
from kiln.report.status.command import RunCommand
from kiln.report.status.folders import Failure
from kiln.report.status.outputs import Output
from kiln.report.status.redo import MAX_INLINE, SnakemakeCommand, redo_commands, write_target_lists
from tests.support.run_statuses import make_folder, make_partition, make_run

SHARDS = "results/sample/worldcover-1a2b3c4d/shards/2021"
DAMAGED_LEDGER = Failure("", "the ledger is gone")  # a retry may repair it
NOT_FINITE = Failure("u", "vector not finite in float16")  # it recurs
DARK = Failure("u", "dark", "ftp://host/a.tif")  # unknown
CARRY_ON = "carry the results on (products, index)"
pytestmark = pytest.mark.usefixtures("here")


def commands(*runs, **options):
    """Return purpose and text of each command, of all groups."""
    groups = redo_commands(runs, **({"list_file": "redo.txt"} | options))
    return [(command.purpose, command.text()) for group in groups for command in group.commands]


def run_of(partition, *, database=None, **options):
    return make_run(make_folder(partition), **({"database": database} if database else {}), **options)


# ------------------------------------------------------------------------------------------------------ what is left


def test_a_finished_run_has_no_command():
    assert redo_commands([make_run()], list_file="redo.txt") == []


def test_missing_shards_are_named_and_then_everything_goes_on():
    run = run_of(make_partition(missing=[0, 2], product=Output("waits")), database=Output("waits"))
    assert commands(run, cores="4") == [
        ("2 shards missing", f"snakemake --cores 4 -- {SHARDS}/2021-0.parquet {SHARDS}/2021-2.parquet"),
        (f"then {CARRY_ON}", "snakemake --cores 4"),
    ]


def test_failures_are_forced_by_their_outlook():
    found = {0: [NOT_FINITE], 1: [DAMAGED_LEDGER], 2: [DARK]}
    assert commands(run_of(make_partition(failures=found))) == [
        ("1 shard with failures that a retry may repair", f"snakemake --cores all --force -- {SHARDS}/2021-1.parquet"),
        ("1 shard with failures whose sources cannot be looked at",
         f"snakemake --cores all --force -- {SHARDS}/2021-2.parquet"),
        (f"then {CARRY_ON}", "snakemake --cores all"),
    ]  # fmt: skip


def test_failures_that_recur_have_no_command():
    assert commands(run_of(make_partition(failures={0: [NOT_FINITE]}))) == []


def test_failures_that_were_not_looked_at_have_no_command(monkeypatch):
    monkeypatch.setattr(failures, "MAX_CHECKED", 1)
    others = {n: [Failure(f"u{n}", "dark", "ftp://host/a.tif")] for n in range(3)}
    (purpose, text), _ = commands(run_of(make_partition(failures=others)))
    assert purpose == "1 shard with failures whose sources cannot be looked at"
    assert text.endswith(" -- results/sample/worldcover-1a2b3c4d/shards/2021/2021-0.parquet")


def test_a_shard_with_several_failures_is_named_once():
    for found, expected in (
        ((DARK, DAMAGED_LEDGER, NOT_FINITE), "1 shard with failures that a retry may repair"),
        ((NOT_FINITE, DARK), "1 shard with failures whose sources cannot be looked at"),
    ):
        (purpose, text), carry_on = commands(run_of(make_partition(failures={0: found})))
        assert (purpose, text.count("2021-0")) == (expected, 1)
        assert carry_on[0] == f"then {CARRY_ON}"


@pytest.mark.parametrize("state", ["missing", "outdated"])
def test_a_missing_or_outdated_output_is_made_by_carrying_on(state):
    carry_on = [(CARRY_ON, "snakemake --cores all")]
    assert commands(run_of(make_partition(product=Output(state)), database=Output("waits"))) == carry_on
    assert commands(make_run(database=Output(state))) == carry_on


def test_damaged_outputs_are_forced_by_their_records():
    product, database = "results/sample/worldcover-1a2b3c4d/products/2021/0f.json", "results/sample/index/0e.json"
    run = run_of(make_partition(product=Output("damaged", product)), database=Output("outdated", database))
    assert commands(run) == [
        ("1 output with lost files", f"snakemake --cores all --force -- {product}"),
        (f"then {CARRY_ON}", "snakemake --cores all"),
    ]
    run = run_of(make_partition(product=Output("damaged", product)), database=Output("damaged", database))
    assert commands(run)[0] == ("2 outputs with lost files", f"snakemake --cores all --force -- {product} {database}")


# --------------------------------------------------------------------------------------------------------------- flags


def test_the_run_s_own_call_is_repeated(here):
    command = RunCommand([str(here / "config/a b.yaml"), "/etc/c.yaml"], ["years=[2021]"], [], "/kiln/Snakefile")
    run = run_of(make_partition(missing=[0]), command=command)
    flags = "--snakefile /kiln/Snakefile --configfile 'config/a b.yaml' /etc/c.yaml --config 'years=[2021]' --cores 2"
    assert [text for _, text in commands(run, cores="2")] == [
        f"snakemake {flags} -- {SHARDS}/2021-0.parquet",
        f"snakemake {flags}",
    ]


def test_named_config_files_replace_those_of_the_run(here):
    command = RunCommand([str(here / "a.yaml")], ["years=[2021]"])
    run = make_run(database=Output("missing"), command=command)
    assert commands(run, config_files=["b.yaml", "c.yaml"]) == [
        (CARRY_ON, "snakemake --configfile b.yaml c.yaml --config 'years=[2021]' --cores all")
    ]


def test_a_profile_decides_about_cores():
    run = run_of(make_partition(missing=[0]), command=RunCommand(options=["--profile", "profiles/slurm"]))
    assert [text for _, text in commands(run, cores="2")] == [
        f"snakemake --profile profiles/slurm -- {SHARDS}/2021-0.parquet",
        "snakemake --profile profiles/slurm",
    ]
    run = make_run(database=Output("missing"), command=RunCommand(options=["--workflow-profile", "x"]))
    assert commands(run) == [(CARRY_ON, "snakemake --workflow-profile x --cores all")]


def test_a_run_elsewhere_has_its_place_in_the_flags():
    def texts(root, *options):
        run = make_run(make_folder(root=root), database=Output("missing"), command=RunCommand(options=options))
        return [text for _, text in commands(run)]

    store = "--default-storage-provider s3 --default-storage-prefix s3://b/p"
    assert texts("/else where") == ["snakemake --cores all --directory '/else where'"]
    assert texts("s3://b/p") == [f"snakemake --cores all {store}"]
    assert texts("s3://b/p", "--profile", "aws") == ["snakemake --profile aws"], "the profile names the store"
    assert texts("/x", "--profile", "slurm") == ["snakemake --profile slurm --directory /x"]


# -------------------------------------------------------------------------------------------------------- many targets


@pytest.mark.parametrize("count", [MAX_INLINE, MAX_INLINE + 1])
def test_many_targets_go_to_a_list(count):
    run = run_of(make_partition(shards=count, missing=range(count)))
    (group,) = redo_commands([run], list_file="a list.txt")
    missing, carry_on = group.commands
    write_target_lists([group])
    targets = [f"{SHARDS}/2021-{n}.parquet" for n in range(count)]
    assert missing.arguments == ["snakemake", "--cores", "all", "--", *targets]
    assert carry_on.arguments == ["snakemake", "--cores", "all"]
    if count == MAX_INLINE:
        assert shlex.split(missing.text()) == missing.arguments
        assert list(Path().iterdir()) == []
    else:
        assert missing.text() == "snakemake --cores all -- $(cat 'a list-missing.txt')"
        assert [path.name for path in Path().iterdir()] == ["a list-missing.txt"]
        assert Path("a list-missing.txt").read_text().splitlines() == targets


def test_each_purpose_has_its_own_list():
    count = MAX_INLINE + 1
    partitions = [
        make_partition("2019", count, missing=range(count)),
        make_partition("2020", count, failures={n: [DAMAGED_LEDGER] for n in range(count)}),
        make_partition("2021", count, failures={n: [DARK] for n in range(count)}),
    ]
    damaged = [
        make_partition(f"p{n}", 1, product=Output("damaged", f"results/sample/x/products/p{n}/0f.json"))
        for n in range(count)
    ]
    groups = redo_commands([make_run(make_folder(*partitions, *damaged))], list_file="redo.txt")
    write_target_lists(groups)
    words = {path.name: path.read_text() for path in Path().iterdir()}
    assert {name: text.count("\n") for name, text in words.items()} == {
        "redo-missing.txt": count,
        "redo-failed.txt": count,
        "redo-unknown.txt": count,
        "redo-damaged.txt": count,
    }
    assert all("/shards/2020/" in line for line in words["redo-failed.txt"].splitlines())


def test_a_command_without_targets_is_for_everything():
    assert SnakemakeCommand("", ["--cores", "1"], []).text() == "snakemake --cores 1"
    assert SnakemakeCommand("", ["--cores", "1"], ["a b"]).text() == "snakemake --cores 1 -- 'a b'"


# ------------------------------------------------------------------------------------------------------------- groups


def test_each_run_has_its_own_command_and_lists():
    count = MAX_INLINE + 1
    runs = [
        make_run(
            make_folder(make_partition(shards=count, missing=range(count)), run=name, root=root),
            command=RunCommand(options=["--profile", name]),
        )
        for name, root in (("one", ""), ("two", "/x"), ("three", ""))
    ]
    runs[2] = make_run(make_folder(run="three"))
    groups = redo_commands(runs, list_file="redo.txt")
    assert [group.name for group in groups] == ["results/one", "results/two"], "nothing is left of the third"
    assert [group.commands[0].text() for group in groups] == [
        "snakemake --profile one -- $(cat redo-missing-one.txt)",
        "snakemake --profile two --directory /x -- $(cat redo-missing-two.txt)",
    ]
    assert groups[1].commands[0].targets[0].startswith("results/two/")


def test_a_single_group_has_no_name():
    (group,) = redo_commands([make_run(database=Output("missing"))], list_file="redo.txt")
    assert group.name == ""


def test_datasets_of_one_config_share_commands():
    folders = [
        make_folder(make_partition("2021", missing=[0])),
        make_folder(make_partition("nd-2019", missing=[1]), name="naip-99aa99aa"),
    ]
    (group,) = redo_commands([make_run(*folders)], list_file="redo.txt")
    missing, _ = group.commands
    assert missing.targets == [
        f"{SHARDS}/2021-0.parquet",
        "results/sample/naip-99aa99aa/shards/nd-2019/nd-2019-1.parquet",
    ]


def test_two_fingerprints_of_a_dataset_are_of_two_configs():
    """Which of them the database is made of is unknown, so it is left alone."""
    names = ("worldcover-1a2b3c4d", "worldcover-99aa99aa")
    folders = [make_folder(make_partition(missing=[0], product=Output("waits")), name=name) for name in names]
    run = make_run(*folders, database=Output("damaged", "results/sample/index/0e.json"))
    groups = redo_commands([run], list_file="redo.txt")
    assert [group.name for group in groups] == [f"results/sample/{name}" for name in names]
    for group, name in zip(groups, names, strict=True):
        assert [command.targets for command in group.commands] == [
            [f"results/sample/{name}/shards/2021/2021-0.parquet"],
            [],
        ]
