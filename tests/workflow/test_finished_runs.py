"""A finished run has nothing to do, however it is loaded; with a shard deleted, exactly that is done again."""

from pathlib import Path

import pytest

from tests.workflow.workflow import ROOT, DryRun, Run, copy_checkout, dry_runs, job_counts, write_importer

EVERY = ("code", "params", "input", "mtime", "software-env")
REDO = {"embed_worldcover": 1, "merge_worldcover": 1, "build_index": 1, "coverage": 1, "picture_similar": 1, "all": 1}


def calls(run: Run, checkout: Path) -> dict[str, DryRun]:
    """Return the ways to load a run, by name. `checkout` is a fresh clone; the run's folder holds the module's file."""
    configured = ("--configfile", str(run.folder / "config.yaml"))

    def call(*arguments: str, root: Path = ROOT, profiles: bool = True) -> DryRun:
        """Stand in the checkout; without `profiles` in the run's folder, which has none."""
        place = ("-s", str(root / "Snakefile"), "--directory", str(run.folder))
        return DryRun(root if profiles else run.folder, (*place, *configured, *arguments))

    slurm = str(ROOT / "profiles/slurm")
    return {
        "default": call(),
        "from another folder": call(profiles=False),
        "--profile slurm": call("--profile", "slurm"),
        "--workflow-profile slurm": call("--workflow-profile", "slurm"),
        "--profile and --workflow-profile": call("--profile", slurm, "--workflow-profile", slurm),
        "--workflow-profile none": call("--workflow-profile", "none"),
        **{f"--rerun-triggers {trigger}": call("--rerun-triggers", trigger) for trigger in EVERY},
        "every trigger": call("--rerun-triggers", *EVERY),
        "a fresh clone": call(root=checkout),
        "a fresh clone, every trigger": call("--rerun-triggers", *EVERY, root=checkout),
        "a module": DryRun(run.folder, ("kiln_all",)),
        "a module, every trigger": DryRun(run.folder, ("kiln_all", "--rerun-triggers", *EVERY)),
    }


@pytest.fixture(scope="module")
def run(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with Snakemake's records of it, which all triggers but mtime look at."""
    run = finished.clone(tmp_path_factory.mktemp("ways") / "run", records=True)
    write_importer(run.folder)
    return run


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("clone") / "kiln")


def test_a_finished_run_has_nothing_to_do(run: Run, checkout: Path, tmp_path: Path) -> None:
    ways = calls(run, checkout)
    outputs = dict(zip(ways, dry_runs(list(ways.values()), tmp_path), strict=True))
    assert {way: text for way, text in outputs.items() if "Nothing to be done" not in text} == {}


def test_the_summary_calls_nothing_changed(run: Run) -> None:
    rows = [line.split("\t") for line in run.snakemake("--summary").splitlines() if line.startswith("results/")]
    assert len(rows) >= 8
    assert {(row[-2], row[-1]) for row in rows} == {("ok", "no update")}


def test_the_trigger_code_sees_a_changed_rule(run: Run, tmp_path: Path) -> None:
    """The records that the tests above rely on are read."""
    checkout = copy_checkout(tmp_path / "kiln")
    rules = checkout / "rules/datasets.smk"
    rules.write_text(rules.read_text().replace("scripts.merge ", "scripts.merge  "))
    changed = Run(run.folder, run.changes, checkout)
    assert changed.jobs("--rerun-triggers", "mtime") == {}
    assert changed.jobs("--rerun-triggers", "code") == {k: n for k, n in REDO.items() if k != "embed_worldcover"}


def test_a_deleted_shard_redoes_itself_its_merge_index_and_pictures(run: Run, checkout: Path, tmp_path: Path) -> None:
    run.shards()[0].unlink()
    ways = calls(run, checkout)
    outputs = dict(zip(ways, dry_runs(list(ways.values()), tmp_path), strict=True))
    found = {
        way: {rule.removeprefix("kiln_"): count for rule, count in job_counts(text).items()}
        for way, text in outputs.items()
    }
    assert found == dict.fromkeys(ways, REDO)


def test_shards_alone_are_asked_for_by_name(finished: Run, tmp_path: Path) -> None:
    """`--until` cannot do that: Snakemake looks for shards only behind the plan."""
    run = finished.clone(tmp_path / "run")
    run.shards()[0].unlink()
    placed = ("-s", str(ROOT / "Snakefile"), "--configfile", "config.yaml")
    targets = ("embed", "worldcover_shards")
    outputs = dry_runs([DryRun(run.folder, (target, *placed)) for target in targets], tmp_path / "dry")
    assert [job_counts(text) for text in outputs] == [{"embed_worldcover": 1, target: 1} for target in targets]
    wrong = {
        "allow_missing=true": "config: allow_missing: expected false where shards are asked for, got true",
        "partitions=['2020']": "config: partitions: expected patterns that fit a partition of worldcover, got ['2020']",
    }
    calls = [DryRun(run.folder, ("embed", *placed, "--config", value)) for value in wrong]
    for refused, message in zip(dry_runs(calls, tmp_path), wrong.values(), strict=True):
        assert f"\nerror: {message}" in refused, "one line"
        assert "Traceback" not in refused


def test_what_delete_all_output_leaves_is_deleted_on_request(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "run")
    run.snakemake("--cores", "1", "delete_leftovers")
    assert run.files() == finished.files(), "nothing that a run needs is a leftover"
    run.snakemake("--delete-all-output")
    assert "/ledger.parquet" in str(run.files())
    run.snakemake("--cores", "1", "delete_leftovers")
    assert [str(p.relative_to(run.folder)) for p in run.folder.glob("results/*/*")] == []
    assert list(run.folder.glob("checkpoints/*/*")) == []
