"""Array jobs: sizes, the request to Batch, and the command of one job, which may only run Kiln's scripts."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from kiln.aws import array_jobs
from kiln.aws.array_jobs import Array, Submission, array_sizes, check_is_script, embed_rule, prepare_job
from kiln.aws.batch import JobResources
from kiln.errors import ConfigError
from kiln.formats.plan_file import ARRAY_INDEX
from kiln.io import storage
from kiln.workflow.config import load_config
from kiln.workflow.run import Run
from scripts import array_job
from tests import ROOT

COMMAND = ("python", "-m", "scripts.embed", "--shard", "<shard>", "--folder", "x/<partition>", "--weights", "<weights>")


def test_an_array_has_2_to_10000_jobs() -> None:
    assert array_sizes(1) == [(0, 1)]
    assert array_sizes(2) == [(0, 2)]
    assert array_sizes(10_000) == [(0, 10_000)]
    assert array_sizes(10_001) == [(0, 5_000), (5_000, 5_001)]
    sizes = array_sizes(123_456)
    assert [first for first, _ in sizes] == [sum(n for _, n in sizes[:k]) for k in range(13)]
    assert all(2 <= n <= 10_000 for jobs in range(2, 40_000, 7) for _, n in array_sizes(jobs))


def submission(gpus: int = 0) -> Submission:
    return Submission(
        name="kiln-tiny",
        queue="q",
        definition="d:1",
        code="s3://b/arrays/code/1.zip",
        sha256="f" * 64,
        array="s3://b/a.json",
        resources=JobResources(4, 7500, gpus),
        tags={"kiln-run": "tiny"},
    )


def test_the_request_of_an_array_matches_its_submission() -> None:
    request = submission().request(0, 1359)
    assert request["arrayProperties"] == {"size": 1359}
    assert request["retryStrategy"] == {
        "attempts": 5,
        "evaluateOnExit": [
            {"onStatusReason": "Host EC2*", "action": "RETRY"},
            {"onReason": "*", "action": "EXIT"},
        ],
    }, "as the published run; moto does not check it"
    assert request["containerOverrides"]["resourceRequirements"] == [
        {"type": "VCPU", "value": "4"}, {"type": "MEMORY", "value": "7500"}
    ]  # fmt: skip
    assert len(json.dumps(request["containerOverrides"])) < 8192, "AWS's limit"
    gpu = submission(gpus=1).request(5_000, 5_001)
    assert gpu["containerOverrides"]["resourceRequirements"][-1] == {"type": "GPU", "value": "1"}
    assert gpu["containerOverrides"]["command"][-2:] == ["--first", "5000"]


def test_one_shard_is_a_plain_job() -> None:
    request = submission().request(0, 1)
    assert "arrayProperties" not in request
    assert request["containerOverrides"]["command"][-2:] == ["--index", "0"]


def test_the_description_of_a_large_array_is_small() -> None:
    shards = [(f"nd-{n % 2000}", f"0123-100-{n:08x}") for n in range(12_315)]
    array = Array(("python",), "s3://b/x", "s3://b/w", shards)
    assert len(json.dumps(asdict(array))) < 600_000, "every job reads it"


def small_array(folder: Path, command: tuple[str, ...] = COMMAND) -> Array:
    weights = folder / "encoder.safetensors"
    weights.write_bytes(b"weights")
    shards = [("2020", "a"), ("2021", "b")]
    return Array(command, f"{folder}/<partition>/<shard>.parquet", str(weights), shards)


def test_each_job_gets_its_shard_and_the_weights(tmp_path: Path) -> None:
    array = Array.read(small_array(tmp_path).write(str(tmp_path / "arrays")))
    commands = [prepare_job(array, n, tmp_path / "w") for n in range(2)]
    assert commands == [
        ["python", "-m", "scripts.embed", "--shard", "a", "--folder", "x/2020", "--weights", f"{tmp_path}/w"],
        ["python", "-m", "scripts.embed", "--shard", "b", "--folder", "x/2021", "--weights", f"{tmp_path}/w"],
    ]
    assert (tmp_path / "w").read_bytes() == b"weights"


def test_the_rule_of_a_dataset() -> None:
    config = load_config([ROOT / "config/config.yaml"])
    config["resources"] |= {"embed_threads": 2, "embed_mem_mb": 7500}
    run = Run(config, "s3://bucket/deep")
    rule = embed_rule(run, "naip")
    folder = f"s3://bucket/deep/{run.dataset('naip').folder}"
    assert rule.resources == JobResources(2, 8192), "7500 MB, as the executor's table has it"
    assert (rule.folder, rule.output) == (folder, f"{folder}/shards/<partition>/<shard>.parquet")
    assert rule.plan.startswith(f"{folder}/plan-")
    assert rule.weights.startswith("s3://bucket/deep/results/models/")
    check_is_script(rule.command)
    command = Array.of(rule).command_of("nd", "a", "local")
    assert command[command.index("--threads") + 1] == "2"
    assert command[command.index("--output") + 1] == f"{folder}/shards/nd/a.parquet"
    assert command[command.index("--weights") + 1] == "local"
    assert not any("<" in word for word in command)
    with pytest.raises(ConfigError, match="datasets: expected modis among them"):
        embed_rule(run, "modis")


def test_a_job_of_a_finished_shard_or_past_the_last_one_does_nothing(tmp_path: Path) -> None:
    array = small_array(tmp_path)
    storage.write_bytes(array.output_of("2020", "a"), b"1")
    assert prepare_job(array, 0, tmp_path / "w") is None
    assert prepare_job(array, 2, tmp_path / "w") is None
    assert not (tmp_path / "w").exists(), "no weights are fetched"


@pytest.mark.parametrize(
    "command",
    [
        ("python", "-c", "print('anything')"),
        ("python", "-m", "http.server"),
        ("python", "-m", "scriptsx.embed"),
        ("python", "-m", "kiln.aws.submit"),
        ("bash", "-m", "scripts.embed"),
        ("python", "-m"),
        (),
    ],
)
def test_a_job_runs_only_scripts_of_kiln(command: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected `python -m scripts\.NAME"):
        prepare_job(small_array(tmp_path, command), 0, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    check_is_script(["python", "-m", "scripts.embed"])


def test_the_script_refuses_another_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = tmp_path / "ran"
    uri = small_array(tmp_path, ("python", "-m", "timeit", "-n", "1", f"open({str(ran)!r}, 'w')")).write(str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        array_job.main(["--array", uri, "--index", "0"])
    assert stop.value.code == 2
    assert "Submit the array again" in capsys.readouterr().err
    assert not ran.exists()


def test_the_position_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ARRAY_INDEX, "3")
    assert array_job.position(5_000, None) == 5_003
    assert array_job.position(5_000, 1) == 1
    monkeypatch.delenv(ARRAY_INDEX)
    with pytest.raises(ConfigError, match=f"{ARRAY_INDEX}: expected the job's number, got ''"):
        array_job.position(0, None)


def test_a_file_without_a_description_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"shards": []}')
    with pytest.raises(ConfigError, match=r"a\.json: expected the description of an array job"):
        Array.read(str(tmp_path / "a.json"))


def test_the_module_of_jobs_exists() -> None:
    assert array_job.__name__ == array_jobs.MODULE
