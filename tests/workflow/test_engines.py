"""Other engines: the profiles for Slurm and Kubernetes plan the same jobs, with the executors really loaded."""

import os
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
import yaml
from snakemake import cli

from tests.workflow.workflow import ROOT, Run, fresh, job_counts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fresh(tmp_path_factory.mktemp("engines") / "run")


def profile(name: str) -> list[str]:
    return ["--profile", str(ROOT / "profiles" / name)]


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_a_profile_leaves_cores_and_memory_to_the_config(name: str) -> None:
    profile = yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text())
    assert profile["executor"] == name
    assert "cores" not in profile, "it would limit the threads of every job"
    assert profile["scheduler"] == "greedy"


@pytest.mark.parametrize("name", ["aws-batch", "kubernetes", "slurm"])
def test_a_profile_of_the_checkout_is_found_before_one_of_the_user(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "snakemake" / name
    users.mkdir(parents=True)
    (users / "config.yaml").write_text("cores: 1\n")
    monkeypatch.setattr(
        cli, "get_appdirs", lambda: SimpleNamespace(user_config_dir=users.parent, site_config_dir="/no")
    )
    monkeypatch.chdir(ROOT)
    assert cli.get_profile_dir(name)[1].resolve() == ROOT / "profiles" / name / "config.yaml"
    monkeypatch.chdir(tmp_path)
    assert cli.get_profile_dir(name)[1] == users / "config.yaml", "the user's, as in any other folder"


def test_slurm_plans_the_same_jobs(run: Run) -> None:
    output = run.snakemake("-n", *profile("slurm"))
    assert job_counts(output) == run.jobs()
    assert f"Using profiles {ROOT}/profiles/slurm" in output


def test_an_engine_that_is_not_installed_is_refused(run: Run) -> None:
    """Executors are looked for in a dry run too, so the one above has loaded Slurm's."""
    output = run.snakemake("-n", *profile("slurm"), "--executor", "slurmy", check=False)
    assert "slurmy" in output


def test_kubernetes_plans_the_same_jobs_on_a_bucket(run: Run, bucket: str, tmp_path: Path) -> None:
    for path in sorted((run.folder / "archive").rglob("*.tif")):
        key = path.relative_to(run.folder).as_posix()
        boto3.client("s3").upload_file(str(path), bucket.removeprefix("s3://"), key)
    far = Run(tmp_path, {"worldcover": {"archive": f"{bucket}/archive/rgbnir"}})
    aws = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
    account = {"KILN_BUCKET": bucket.removeprefix("s3://"), "KILN_IMAGE": "kiln:1"}
    output = far.snakemake("-n", *profile("kubernetes"), **account, **aws)
    assert job_counts(output).keys() >= {"plan_worldcover"}
    assert f"{bucket.removeprefix('s3://')}/results/tiny" in output
