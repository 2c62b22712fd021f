"""The lab itself: its jobs are containers that have only the credentials of their role."""

import time

import pytest

from tests.batch import lab as labs
from tests.batch.image import Image
from tests.batch.lab import Lab
from tests.batch.server import ROLE_KEY

PRINT_KEYS = (
    "import json, os, urllib.request as web; url = os.environ['AWS_CONTAINER_CREDENTIALS_FULL_URI']; "
    "print(json.load(web.urlopen(url))['AccessKeyId'], sorted(k for k in os.environ if 'KEY' in k))"
)


def wait(lab: Lab, job: str, seconds: float = 60) -> str:
    """Wait for a job and return its last state."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        state = lab.client("batch").describe_jobs(jobs=[job])["jobs"][0]["status"]
        if state in ("SUCCEEDED", "FAILED"):
            return state
        time.sleep(0.3)
    raise AssertionError(f"{job} has not ended after {seconds} s: {state}")


def submit(lab: Lab, name: str, command: list[str]) -> str:
    """Submit a job that runs a command in the base image; return its id."""
    batch = lab.client("batch")
    resources = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "2048"}]
    batch.register_job_definition(
        jobDefinitionName=name,
        type="container",
        containerProperties={"image": lab.base, "command": command, "resourceRequirements": resources},
    )
    return batch.submit_job(jobName=name, jobQueue=lab.queue, jobDefinition=name)["jobId"]


def test_job_is_a_container_with_the_credentials_of_its_role(lab: Lab, image: Image):
    with lab.counted() as requests:
        job = submit(lab, "print-keys", ["python3", "-c", PRINT_KEYS])
        assert wait(lab, job) == "SUCCEEDED"
    assert lab.log(job).split(" ", 1)[0] == ROLE_KEY
    assert "[]" in lab.log(job)
    assert requests.batch["submitjob"] == 1
    assert "print-keys" in [d["jobDefinitionName"] for d in lab.definitions()]


def test_job_of_a_stopped_container_fails(lab: Lab, image: Image):
    job = submit(lab, "sleep", ["sleep", "600"])
    until = time.monotonic() + 60
    while not (running := lab.containers("sleep")):
        assert time.monotonic() < until
        time.sleep(0.2)
    lab.stop(running[0])
    assert wait(lab, job) == "FAILED"
    assert job in [j["jobId"] for j in lab.jobs("FAILED")]


def test_requests_are_counted_by_operation(lab: Lab):
    s3 = lab.client("s3")
    with lab.counted() as requests:
        s3.create_bucket(Bucket="counted")
        s3.put_object(Bucket="counted", Key="a/b", Body=b"c")
        s3.head_object(Bucket="counted", Key="a/b")
        s3.get_object(Bucket="counted", Key="a/b")
        s3.list_objects_v2(Bucket="counted")
        s3.head_bucket(Bucket="counted")
        s3.delete_object(Bucket="counted", Key="a/b")
    assert requests.s3 == {
        "CreateBucket": 1, "PutObject": 1, "HeadObject": 1, "GetObject": 1, "ListObjects": 1, "HeadBucket": 1,
        "DeleteObject": 1,
    }  # fmt: skip
    assert requests.keys == {"AKIADRIVER"}


def test_check_tools_reports_missing_root_and_missing_tools(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(labs.os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeError, match="need root"):
        labs.check_tools()
    monkeypatch.setattr(labs.os, "geteuid", lambda: 0)
    monkeypatch.setattr(labs.shutil, "which", lambda tool: None if tool in ("podman", "apt-get") else f"/bin/{tool}")
    with pytest.raises(RuntimeError, match="need podman: install"):
        labs.check_tools()
