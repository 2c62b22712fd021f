"""The config: defaults and shipped files dry-run without a network; what is wrong is said before anything runs."""

import re
import sys
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


PLANNED = {"naip", "sentinel2"}  # datasets whose plan tells the shards


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_shipped_config_dry_runs_without_network(tmp_path: Path, config: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    counts = job_counts(dry_run(tmp_path, config, PYTHONPATH=str(tmp_path)))
    datasets = set(yaml.safe_load(config.read_text())["datasets"])
    assert {d for d in datasets if f"plan_{d}" in counts} == datasets
    assert {d for d in datasets if f"embed_{d}" in counts} == datasets - PLANNED, "known before the plan, or by it"
    assert ("build_index" in counts) == (not datasets & PLANNED)
    if config.stem == "conus":
        assert counts["embed_worldcover"] == 2 * 170


@pytest.mark.parametrize("config", SHIPPED, ids=lambda p: p.stem)
def test_without_a_digest_only_encoder_weights_runs(tmp_path: Path, config: Path) -> None:
    if yaml.safe_load(config.read_text())["model"]["checkpoint"] == "untrained":
        pytest.fail("no checkpoint") if config.stem != "config" else None
        return
    run = Run(tmp_path)
    said = run.snakemake("--configfile", str(config), "-n", check=False)
    assert "model.sha256 is missing" in said
    assert "encoder_weights" in said
    assert job_counts(run.snakemake("--configfile", str(config), "-n", "encoder_weights")) == {"encoder_weights": 1}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"worldcver": {}}, "worldcver"),
        ({"worldcover": {"chipsize": 512}}, "chipsize"),
        ({"worldcover": {"chip_size": "big"}}, "big"),
        ({"worldcover": {"chip_size": 500}}, "500"),
        ({"worldcover": {"years": [2019]}}, "2019"),
        ({"worldcover": {"region": [8, 45, 8, 46]}}, "empty"),
        ({"worldcover": {"region": [6, 46, 8, 45]}}, "empty"),
        ({"worldcover": {"region": [6, 85, 8, 89]}}, "empty"),
        ({"worldcover": {"region": "mars"}}, "mars"),
        ({"worldcover": {"pixels_per_degree": 7000}}, "7000"),
        ({"max_failed_fraction": 2}, "2"),
        ({"model": {"sha256": "abc"}}, "abc"),
        ({"storage": "int4"}, "int4"),
        ({"model": {"precision": "int8"}, "resources": {"device": "cuda"}}, "precision int8 is for CPUs"),
        ({"embedding": "patches"}, "patches"),
        ({"index": {"select": {"embedding": "mean"}}}, "index.select.embedding mean, but embedding class"),
        ({"embedding": "mean", "index": {"select": {"embedding": "class"}}}, "class, but embedding mean"),
        ({"index": {"select": {"max_rows": 0}}}, "0"),
        ({"index": {"select": {"partitions": ["2019"]}}}, "2019"),
        ({"worldcover": {"encode": "quarters", "chip_size": 24}}, "divide by 16"),
        ({"model": {"untrained": {"heads": 3}}}, "heads 3"),
        ({"worldcover": {"years": []}}, "turns no dataset on"),
        ({"datasets": []}, "turns no dataset on"),
        ({"datasets": ["naip2"]}, "naip2"),
        ({"naip": {"states": ["North Dakota"]}}, "North Dakota"),
        ({"naip": {"lattice": "utm", "edge": "align"}}, "edge align goes with lattice scene"),
        ({"naip": {"unique": True}}, "naip.unique wants naip.lattice utm"),
        ({"naip": {"chip_size": 100}}, "100"),
        ({"naip": {"bbox": [1, 2, 3]}}, "bbox"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_wrong_setting_is_said_before_anything_runs(tmp_path: Path, changes: dict, told: str) -> None:
    said = Run(tmp_path, changes).snakemake("-n", check=False)
    assert told in said
    assert "Job stats" not in said


def test_year_that_the_archive_lacks_is_said(tmp_path: Path) -> None:
    run = fresh(tmp_path / "run", {"worldcover": {"years": [2020]}})
    said = run.snakemake("--cores", "1", check=False)
    assert "2020" in said
    assert "is `archive` the folder that holds the years?" in said or "nothing there" in said


def test_schema_describes_every_key_and_allows_no_other() -> None:
    schema = yaml.safe_load((ROOT / "config" / "schemas" / "config.schema.yaml").read_text())

    def look(part: dict, where: str) -> None:
        if part.get("type") == "object" or "properties" in part:
            assert part.get("additionalProperties") is False, where
        for name, value in part.get("properties", {}).items():
            assert value.get("description"), f"{where}.{name}"
            look(value, f"{where}.{name}")
        for choice in part.get("oneOf", []):
            look(choice, where)

    look(schema, "config")


def test_readme_of_the_config_explains_every_key() -> None:
    told = (ROOT / "config" / "README.md").read_text()

    def keys(value: dict, above: str = "") -> list[str]:
        found = []
        for name, inner in value.items():
            found.append(f"{above}{name}")
            if isinstance(inner, dict):
                found += keys(inner, f"{above}{name}.")
        return found

    defaults = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    missing = [k for k in keys(defaults) if f"`{k}`" not in told]
    assert not missing


def rules_text() -> str:
    return "\n".join(p.read_text() for p in (ROOT / "rules").glob("*.smk"))


def test_every_rule_carries_what_a_rule_must() -> None:
    rules = re.split(r"^(?:rule|checkpoint) ", rules_text(), flags=re.M)[1:]
    assert len(rules) >= 8
    for rule in rules:
        name = rule.partition(":")[0]
        for directive in ("conda:", "log:", "message:", "threads:", "resources:", "shell:"):
            assert f"\n    {directive}" in rule, f"{name} lacks {directive}"
        script = re.search(r"python -m scripts\.(\w+)", rule)
        assert script, name
        assert (ROOT / "scripts" / f"{script[1]}.py").is_file()
    assert "lambda" not in rules_text()


def test_python_that_runs_the_tests_is_one_that_is_supported() -> None:
    assert sys.version_info >= (3, 11)
