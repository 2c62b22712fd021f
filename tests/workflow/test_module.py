"""Kiln as a module of another workflow: from a path and from git, with its paths below a prefix or replaced."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.server import FileServer
from tests.workflow.workflow import (
    ROOT,
    DryRun,
    Run,
    copy_checkout,
    dry_runs,
    finished_jobs,
    fresh,
    job_counts,
    write_importer,
)

FROM_GIT = 'github("kiln/kiln", path="Snakefile", tag="v1")'


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which Snakemake finds a clone of the project on GitHub, with the tag v1."""
    folder = tmp_path_factory.mktemp("cache")
    checkout = copy_checkout(tmp_path_factory.mktemp("git") / "kiln")
    author = ["-c", "user.name=kiln", "-c", "user.email=kiln@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*author, "commit", "-qm", "all"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=checkout, check=True)
    clones = folder / "snakemake/snakemake/source-cache/snakemake-git-cache/github.com/kiln"
    clones.mkdir(parents=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(checkout), str(clones / "kiln")], check=True)
    return folder


def test_a_module_from_git_with_replaced_paths_runs_to_the_end(tmp_path: Path, cache: Path) -> None:
    run = fresh(tmp_path / "importer")
    write_importer(run.folder, FROM_GIT, 'replace_prefix: {"results/": "out/"}')
    command = ["snakemake", "--cores", "2", "kiln_all", "own"]
    environment = run.environment(XDG_CACHE_HOME=str(cache))
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=run.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert finished_jobs(done.stdout + done.stderr)["kiln_build_index"] == 1
    assert sorted(p.name for p in (run.folder / "out").iterdir()) == ["models", "tiny"]
    assert not (run.folder / "results").exists()
    assert (run.folder / "own.txt").read_text() == "\n", "the importer's own rules run as without Kiln"
    (output,) = dry_runs([DryRun(run.folder, ("kiln_all",), {"XDG_CACHE_HOME": str(cache)})], tmp_path / "dry")
    assert "Nothing to be done" in output


def test_a_module_below_a_prefix_finds_everything_there(finished: Run, tmp_path: Path) -> None:
    run = finished.clone(tmp_path / "importer")
    for folder in ("results", "logs", "benchmarks"):
        (run.folder / "embeddings").mkdir(exist_ok=True)
        shutil.move(run.folder / folder, run.folder / "embeddings" / folder)
    write_importer(run.folder, paths='prefix: "embeddings"')
    call = DryRun(run.folder, ("kiln_all",))
    (output,) = dry_runs([call], tmp_path / "before")
    assert "Nothing to be done" in output
    next((run.folder / "embeddings").rglob("shards/*/x*[0-9a-f].parquet")).unlink()
    command = ["snakemake", "--cores", "2", "kiln_worldcover"]
    done = subprocess.run(command, cwd=run.folder, env=run.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert finished_jobs(done.stdout + done.stderr) == {
        "kiln_embed_worldcover": 1,
        "kiln_merge_worldcover": 1,
        "kiln_worldcover": 1,
    }
    assert {p.name for p in run.folder.iterdir()} == {".snakemake", "Snakefile", "archive", "config.yaml", "embeddings"}


def test_the_default_target_of_an_importing_workflow_makes_everything(tmp_path: Path) -> None:
    """snakedeploy writes such a workflow, with the Snakefile in `workflow/`."""
    calls = []
    for name in ("Snakefile", "workflow/Snakefile"):
        run = fresh(tmp_path / name.replace("/", "-"))
        write_importer(run.folder, f'"{ROOT / name}"')
        calls.append(DryRun(run.folder))
    for output in dry_runs(calls, tmp_path / "dry"):
        assert job_counts(output) == {"kiln_plan_worldcover": 1, "kiln_all": 1}


def test_an_address_without_a_version_is_refused(tmp_path: Path, serve: Callable[..., FileServer]) -> None:
    names = ("Snakefile", "rules/code_folder.py")
    server = serve({f"/{name}": (ROOT / name).read_bytes() for name in names})
    (tmp_path / "config.yaml").write_text("{}")
    write_importer(tmp_path, f'"{server.url}/Snakefile"')
    (output,) = dry_runs([DryRun(tmp_path, ("kiln_all",))], tmp_path / "dry")
    assert "expected a path, gitfile(...), github(...) or gitlab(...)" in output
