"""The config: defaults and shipped files dry-run without a network; a wrong config is reported before anything runs."""

import re
from pathlib import Path

import pytest
import yaml

from tests.workflow.workflow import ROOT, Run, fresh, job_counts

SHIPPED = sorted((ROOT / "config").glob("*.yaml"))
DIGEST = "0" * 64
NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise AssertionError("network at parse time")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
"""


def dry_run(tmp_path: Path, config: Path, *arguments: str, **environment: str) -> str:
    run = Run(tmp_path)
    digest = tmp_path / "digest.yaml"
    digest.write_text(yaml.safe_dump({"model": {"sha256": DIGEST}}))
    command = ["--configfile", str(config), str(digest), "-n", "--quiet", "rules", *arguments]
    return run.snakemake(*command, **environment)


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_shipped_config_dry_runs_without_network(tmp_path: Path, config: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    counts = job_counts(dry_run(tmp_path, config, PYTHONPATH=str(tmp_path)))
    datasets = set(yaml.safe_load(config.read_text())["datasets"])
    assert counts == {"all": 1, **{f"plan_{dataset}": 1 for dataset in datasets}}


def test_without_a_digest_a_run_is_planned_and_nothing_is_embedded(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", {"model": {"checkpoint": "https://example.org/clay-v1.5.ckpt"}})
    dry = run.snakemake("-n")
    assert job_counts(dry) == {"plan_worldcover": 1, "all": 1}
    assert dry.count("model.sha256: expected the checkpoint's digest") == 1
    for target in ("all", "summary"):
        output = run.snakemake("--cores", "1", target, check=False)
        assert "model.sha256: expected the checkpoint's digest" in output
        assert "encoder_weights" in output
    assert not (run.folder / "results").exists(), "the run is refused before its plan"
    run.snakemake("--cores", "1", "plan")
    assert run.jobs()["embed_worldcover"] == 2
    assert run.jobs("encoder_weights") == {"encoder_weights": 1}
    assert "model.sha256: expected" in run.snakemake("--cores", "1", "worldcover", check=False)


def test_every_shipped_config_but_the_samples_has_a_checkpoint() -> None:
    models = {path.stem: yaml.safe_load(path.read_text())["model"] for path in SHIPPED}
    assert [name for name, model in models.items() if model["checkpoint"] == "untrained"] == ["config"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worldcver": {}}, "config: top level: unknown key 'worldcver'. Did you mean 'worldcover'?"),
        ({"model": {"untrained": {"heads": 3}}}, "model.untrained.dim: expected 16 or more"),
        ({"datasets": []}, "nothing to do: the config turns no dataset on"),
    ],
)
def test_a_wrong_config_is_reported_before_anything_runs(tmp_path: Path, changes: dict, message: str) -> None:
    """One line, without a traceback; the messages themselves are tests/unit/workflow/test_config.py and test_run.py."""
    output = Run(tmp_path, changes).snakemake("-n", check=False)
    assert message in output
    assert "Job stats" not in output
    assert "Traceback" not in output


def test_a_year_that_is_missing_in_the_archive_is_reported(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", {"worldcover": {"years": [2020]}})
    output = run.snakemake("--cores", "1", check=False)
    assert "2020" in output
    assert "Set the folder that holds the years" in output


def test_every_rule_that_runs_a_script_has_log_message_threads_and_resources() -> None:
    text = "\n".join(p.read_text() for p in (ROOT / "rules").glob("*.smk"))
    rules = re.split(r"^ *(?:rule|checkpoint)\b", text, flags=re.M)[1:]
    with_shell = [rule for rule in rules if "shell:" in rule]
    assert len(with_shell) >= 8
    for rule in with_shell:
        for directive in ("conda:", "log:", "message:", "threads:", "resources:"):
            assert re.search(rf"^ +{directive}", rule, flags=re.M), rule


def test_rules_and_snakefile_stay_short_and_hold_no_logic() -> None:
    files = [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]
    assert sum(len(p.read_text().splitlines()) for p in files) <= 450
    assert len((ROOT / "rules/common.smk").read_text().splitlines()) <= 60
    for path in files:
        assert "class " not in path.read_text(), path
