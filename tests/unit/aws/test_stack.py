"""The stack, created on a server that speaks CloudFormation, and the commands that create, read and delete it."""

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, NoCredentialsError, NoRegionError, ProfileNotFound
from botocore.stub import Stubber

from kiln.aws import image as images
from kiln.aws import stack
from kiln.aws.client import aws_errors
from kiln.cli.aws import down, env, image, up
from kiln.errors import AccountError, ConfigError, TransientError
from kiln.version import __version__

REGIONS = ("us-west-2", "eu-central-1", "us-east-1")
RETRY = [("Host EC2*", None, "retry"), (None, "*", "exit")]


@pytest.fixture
def cloud(s3_endpoint: str, aws: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Provide an empty account."""
    aws(s3_endpoint)
    import requests

    requests.post(f"{s3_endpoint}/moto-api/reset", timeout=10).raise_for_status()
    monkeypatch.setattr(stack, "POLL_S", 0.05)
    yield
    requests.post(f"{s3_endpoint}/moto-api/reset", timeout=10).raise_for_status()


@pytest.fixture
def network(cloud: None) -> list[str]:
    """Return the account's VPC as arguments of `kiln aws up`. moto cannot delete a VPC that the stack created."""
    ec2 = boto3.client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = [s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]][:2]
    return ["--set", f"VpcId={vpc}", f"SubnetIds={','.join(subnets)}"]


def output_of(main: Callable[[list[str]], None], *argv: str) -> str:
    """Return what a command prints."""
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        main(list(argv))
        return sys.stdout.getvalue()
    finally:
        sys.stdout = out


def error_of(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], None], *argv: str) -> str:
    """Return the error of a command that fails."""
    with pytest.raises(SystemExit) as e:
        main(list(argv))
    assert e.value.code in (1, 2)
    return capsys.readouterr().err


def test_the_template_passes_the_linter_in_every_region_of_an_archive() -> None:
    lint = [Path(sys.executable).parent / "cfn-lint", "--regions", *REGIONS, "--", stack.TEMPLATE]
    done = subprocess.run(lint, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(stack.TEMPLATE.read_bytes()) < 51_200, "a larger template must be uploaded first"


def test_the_stack_is_created_with_the_outputs_that_the_profile_needs(cloud: None) -> None:
    text = output_of(up.main, "--yes")
    resources = boto3.client("cloudformation").describe_stack_resources(StackName="kiln")["StackResources"]
    created = {r["LogicalResourceId"]: r["PhysicalResourceId"] for r in resources}
    assert set(created) == set(stack.template()["Resources"]), "moto created every resource of the template"
    assert {r["ResourceStatus"] for r in resources} == {"CREATE_COMPLETE"}
    outputs = stack.outputs("kiln")
    assert set(outputs) == set(stack.template()["Outputs"])
    assert text.rstrip().endswith("# no image yet: make aws-image")
    for line in (
        "export AWS_DEFAULT_REGION=us-east-1",
        f"export SNAKEMAKE_AWS_BATCH_JOB_QUEUE={created['CpuQueue']}",
        f"export SNAKEMAKE_AWS_BATCH_JOB_ROLE={outputs['JobRole']}",
        f"export KILN_BUCKET={created['Data']}",
    ):
        assert line in text.splitlines()
    assert outputs["JobRole"].endswith(f":role/{created['JobRole']}")
    shell = subprocess.run(["bash", "-c", f"{output_of(env.main)}\nenv"], text=True, capture_output=True, check=True)
    assert f"KILN_BUCKET={created['Data']}" in shell.stdout


def test_queues_take_spot_first_and_keep_no_machine(cloud: None) -> None:
    output_of(up.main, "--yes", "--set", "CpuSpotMax=32")
    batch, outputs = boto3.client("batch"), stack.outputs("kiln")
    machines = {m["computeEnvironmentArn"]: m for m in batch.describe_compute_environments()["computeEnvironments"]}
    types = {"CpuQueue": {"c6i", "m6a"}, "GpuQueue": {"g5", "g6"}}
    for name, some in types.items():
        (queue,) = batch.describe_job_queues(jobQueues=[outputs[name]])["jobQueues"]
        order = sorted(queue["computeEnvironmentOrder"], key=lambda o: o["order"])
        resources = [machines[o["computeEnvironment"]]["computeResources"] for o in order]
        assert [r["type"] for r in resources] == ["SPOT", "EC2"]
        assert all(r["minvCpus"] == 0 and some <= set(r["instanceTypes"]) for r in resources)
        assert all(len(r["subnets"]) == 3 for r in resources)
        image = "ECS_AL2023_NVIDIA" if name == "GpuQueue" else "ECS_AL2023"
        assert {r["ec2Configuration"][0]["imageType"] for r in resources} == {image}
    assert sorted(m["computeResources"]["maxvCpus"] for m in machines.values()) == [32, 32, 64, 128]
    template = boto3.client("ec2").describe_launch_template_versions(
        LaunchTemplateId=next(iter(machines.values()))["computeResources"]["launchTemplate"]["launchTemplateId"]
    )["LaunchTemplateVersions"][0]["LaunchTemplateData"]
    assert template["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 200
    assert template["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def test_array_jobs_are_retried_only_when_a_machine_was_taken_away(cloud: None) -> None:
    output_of(up.main, "--yes")
    outputs = stack.outputs("kiln")
    for name in ("CpuJob", "GpuJob"):
        (job,) = boto3.client("batch").describe_job_definitions(jobDefinitions=[outputs[name]])["jobDefinitions"]
        rules = job["retryStrategy"]["evaluateOnExit"]
        assert job["retryStrategy"]["attempts"] == 5
        assert [(r.get("onStatusReason"), r.get("onReason"), r["action"].lower()) for r in rules] == RETRY
        assert job["containerProperties"]["jobRoleArn"] == outputs["JobRole"]
        gpus = [r["value"] for r in job["containerProperties"]["resourceRequirements"] if r["type"] == "GPU"]
        assert gpus == (["1"] if name == "GpuJob" else [])


def statements(arn: str) -> list[dict[str, Any]]:
    """Return the statements of a managed policy in the account."""
    iam = boto3.client("iam")
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    return document["Statement"]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_jobs_may_only_read_the_archives_and_write_one_bucket(cloud: None) -> None:
    output_of(up.main, "--yes")
    outputs = stack.outputs("kiln")
    role = stack.template()["Resources"]["JobRole"]["Properties"]
    assert role["ManagedPolicyArns"] == [{"Ref": "DataPolicy"}], "moto does not attach it"
    assert "Policies" not in role
    allowed = [s for s in statements(outputs["DataPolicy"]) if s["Effect"] == "Allow"]
    writing = {
        r for s in allowed for a in listed(s["Action"]) if "Put" in a or "Delete" in a for r in listed(s["Resource"])
    }
    assert writing == {f"arn:aws:s3:::{outputs['Bucket']}/*"}
    reading = {r.split(":")[-1].split("/")[0] for s in allowed for r in listed(s["Resource"])}
    assert reading == {"esa-worldcover-s2", "naip-analytic", "sentinel-cogs", outputs["Bucket"]}
    actions = [a for s in allowed for a in listed(s["Action"])]
    assert not any("*" in a or a in ("s3:CreateBucket", "s3:DeleteBucket", "s3:DeleteObjectVersion") for a in actions)
    (denied,) = [s for s in statements(outputs["DataPolicy"]) if s["Effect"] == "Deny"]
    assert set(denied["Action"]) == {"s3:CreateBucket", "s3:DeleteBucket"}
    assert denied["Resource"] == "*"


def test_a_driver_may_pass_only_the_jobs_role(cloud: None) -> None:
    output_of(up.main, "--yes")
    outputs = stack.outputs("kiln")
    by_name = {s["Sid"]: s for s in statements(outputs["DriverPolicy"])}
    assert not any("*" in a for s in by_name.values() for a in listed(s["Action"]))
    assert [n for n, s in by_name.items() if s["Resource"] == "*"] == ["Watch"]
    assert by_name["GiveJobsTheirRole"]["Resource"] == outputs["JobRole"]
    assert by_name["Submit"]["Resource"][:2] == [outputs["CpuQueue"], outputs["GpuQueue"]]


def test_the_bucket_is_private_versioned_and_has_expiry_rules() -> None:
    """moto creates only the bucket and its encryption, so the rest is read from the template."""
    bucket = stack.template()["Resources"]["Data"]
    about = bucket["Properties"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
    assert about["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(about["PublicAccessBlockConfiguration"].values()) == {True}
    rules = {r["Id"]: r for r in about["LifecycleConfiguration"]["Rules"]}
    assert {r["Prefix"] for r in rules.values() if "ExpirationInDays" in r} == {"checkpoints/", "arrays/"}
    assert rules["uploads-never-finished"]["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert rules["old-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": {"Ref": "OldVersionsDays"}}


def test_no_resource_costs_money_while_idle() -> None:
    kinds = {r["Type"] for r in stack.template()["Resources"].values()}
    assert not kinds & {"AWS::EC2::NatGateway", "AWS::EC2::EIP", "AWS::EC2::Instance", "AWS::KMS::Key"}
    endpoints = [r["Properties"] for r in stack.template()["Resources"].values() if "VPCEndpoint" in r["Type"]]
    assert [e["VpcEndpointType"] for e in endpoints] == ["Gateway"]


def test_a_second_run_changes_only_what_differs(cloud: None) -> None:
    output_of(up.main, "--yes", "--set", "CpuSpotMax=32", "DiskGiB=300")
    bucket = stack.outputs("kiln")["Bucket"]
    stack.deploy("kiln", {"CpuImageTag": "1.0-abc"})
    plan = output_of(up.main, "--yes", "--set", "GpuSpotMax=16")
    assert "at most 32 vCPUs" in plan
    assert "at most 16 vCPUs" in plan
    assert "300 GiB" in plan
    assert stack.outputs("kiln")["Bucket"] == bucket
    assert plan.rstrip().endswith(f"export KILN_IMAGE={stack.outputs('kiln')['Registry']}:1.0-abc")
    assert "KILN_IMAGE" not in output_of(env.main, "--gpu").replace("# no image yet: make aws-image DEVICE=cuda", "")


def test_the_plan_is_printed_and_creation_requires_yes(cloud: None, capsys: pytest.CaptureFixture[str]) -> None:
    plan = output_of(up.main, "--dry-run")
    assert "Idle it costs only what is stored" in plan
    assert stack.find("kiln") is None
    assert "--yes" in error_of(capsys, up.main)
    assert stack.find("kiln") is None


def test_an_existing_bucket_is_used_and_never_deleted(
    cloud: None, network: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="existing")
    output_of(up.main, "--yes", "--bucket", "existing", *network)
    outputs = stack.outputs("kiln")
    assert outputs["Bucket"] == "existing"
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["existing"]
    assert "arn:aws:s3:::existing/*" in json.dumps(statements(outputs["DataPolicy"]))
    assert "was yours before" in error_of(capsys, down.main, "--yes", "--delete-data", "existing")
    output_of(down.main, "--yes")
    assert [b["Name"] for b in s3.list_buckets()["Buckets"]] == ["existing"], (
        "the stack did not create it, so it stays even when empty"
    )


def test_a_bucket_of_another_region_or_a_missing_one_is_refused(
    cloud: None, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"LocationConstraint": "eu-central-1"}
    boto3.client("s3").create_bucket(Bucket="far", CreateBucketConfiguration=place)
    assert "got one in eu-central-1" in error_of(capsys, up.main, "--yes", "--bucket", "far")
    assert "Expected a bucket that these" in error_of(capsys, up.main, "--yes", "--bucket", "nowhere")
    assert stack.find("kiln") is None


def test_down_keeps_a_bucket_with_data(cloud: None, network: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    output_of(up.main, "--yes", *network)
    bucket, s3 = stack.outputs("kiln")["Bucket"], boto3.client("s3")
    s3.put_object(Bucket=bucket, Key="results/conus/x.parquet", Body=b"1" * 1000)
    assert "--yes" in error_of(capsys, down.main)
    assert "the stack's bucket, got another" in error_of(capsys, down.main, "--yes", "--delete-data", "another")
    text = output_of(down.main, "--yes")
    assert "1 files and old versions" in text
    assert f"make aws-up BUCKET={bucket}" in text
    assert stack.find("kiln") is None
    assert boto3.client("ecr").describe_repositories()["repositories"] == []
    assert s3.get_object(Bucket=bucket, Key="results/conus/x.parquet")["Body"].read() == b"1" * 1000
    output_of(up.main, "--yes", "--bucket", bucket, *network)
    assert stack.outputs("kiln")["Bucket"] == bucket, "the same bucket is used again"


def test_down_deletes_a_bucket_that_is_empty_or_named(cloud: None, network: list[str]) -> None:
    s3 = boto3.client("s3")
    output_of(up.main, "--yes", *network)
    assert "IS DELETED TOO" in output_of(down.main, "--yes")
    assert s3.list_buckets()["Buckets"] == []
    output_of(up.main, "--yes", *network)
    bucket = stack.outputs("kiln")["Bucket"]
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"1", b"2"):
        s3.put_object(Bucket=bucket, Key="a", Body=body)
    s3.delete_object(Bucket=bucket, Key="a")
    assert "3 files and old versions" in output_of(down.main, "--yes", "--delete-data", bucket)
    assert s3.list_buckets()["Buckets"] == []


@pytest.fixture
def slow_jobs(cloud: None, s3_endpoint: str) -> Iterator[None]:
    """Keep jobs in the submitted state; without containers moto's jobs fail at once."""
    import requests

    states, model = f"{s3_endpoint}/moto-api/state-manager", {"model_name": "batch::job"}
    slow = {**model, "transition": {"progression": "time", "seconds": 120}}
    requests.post(f"{states}/set-transition", json=slow, timeout=10).raise_for_status()
    yield
    requests.post(f"{states}/unset-transition", json=model, timeout=10).raise_for_status()


def test_down_keeps_a_stack_with_queued_jobs(
    slow_jobs: None, network: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output_of(up.main, "--yes", *network)
    outputs = stack.outputs("kiln")
    boto3.client("batch").submit_job(jobName="first", jobQueue=outputs["CpuQueue"], jobDefinition=outputs["CpuJob"])
    assert "have not ended" in error_of(capsys, down.main, "--yes")
    assert stack.find("kiln")


def test_a_wrong_setting_is_refused_before_anything_is_created(cloud: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "got Vcpus." in error_of(capsys, up.main, "--yes", "--set", "Vcpus=3")
    assert "expected KEY=VALUE" in error_of(capsys, up.main, "--yes", "--set", "CpuSpotMax")
    assert "expected lower-case" in error_of(capsys, up.main, "--yes", "--stack", "My_Stack")
    assert "Run `make aws-up`" in error_of(capsys, env.main)
    assert "got none" in error_of(capsys, down.main, "--yes")


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (NoRegionError(), ConfigError, "Set AWS_DEFAULT_REGION to the archive's region"),
        (NoCredentialsError(), ConfigError, "Set AWS_PROFILE"),
        (("ExpiredToken", "gone"), ConfigError, "Check the AWS credentials: sign in again"),
        (("AuthFailure", "bad"), ConfigError, "does not accept these credentials"),
        (ProfileNotFound(profile="typo"), ConfigError, "Correct AWS_PROFILE"),
        (("AccessDenied", "not you"), AccountError, "access denied. not you"),
        (("Throttling", "slow"), TransientError, "Try again later"),
        (("LimitExceededException", "too many roles"), AccountError, "too many roles"),
    ],
)
def test_errors_of_aws_become_errors_of_kiln(answer: Any, error: type[Exception], words: str) -> None:
    if isinstance(answer, tuple):
        answer = ClientError({"Error": {"Code": answer[0], "Message": answer[1]}}, "CreateStack")
    with pytest.raises(error, match="stack kiln: ") as e, aws_errors("stack kiln"):
        raise answer
    assert words in str(e.value)


def test_the_error_of_a_rolled_back_stack_has_the_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """moto never rolls back, so AWS's answers are stubbed."""
    events = [
        {"LogicalResourceId": "CpuSpot", "ResourceStatus": "CREATE_FAILED", "ResourceStatusReason": "cancelled"},
        {"LogicalResourceId": "GpuSpot", "ResourceStatus": "CREATE_FAILED", "ResourceStatusReason": "no such type"},
        {"LogicalResourceId": "Data", "ResourceStatus": "CREATE_COMPLETE"},
    ]
    service = boto3.client("cloudformation", region_name="us-west-2", aws_access_key_id="x", aws_secret_access_key="x")
    stubbed = Stubber(service)
    about = {"StackName": "kiln", "CreationTime": datetime(2025, 1, 1)}
    for status in ("CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE"):
        stubbed.add_response("describe_stacks", {"Stacks": [about | {"StackStatus": status}]})
    event = {"StackId": "s", "StackName": "kiln", "Timestamp": datetime(2025, 1, 1)}
    stubbed.add_response(
        "describe_stack_events", {"StackEvents": [event | {"EventId": str(n)} | e for n, e in enumerate(events)]}
    )
    monkeypatch.setattr(stack, "client", lambda name: service)
    monkeypatch.setattr(stack, "POLL_S", 0.0)
    with stubbed, pytest.raises(AccountError) as e:
        stack.wait_until_settled("kiln", 10)
    assert str(e.value).splitlines() == [
        "stack kiln: ROLLBACK_COMPLETE", "  GpuSpot: no such type", "  CpuSpot: cancelled"
    ]  # fmt: skip


DOCKER = """#!/bin/sh
# Stands in for docker, which needs an engine and a registry: writes down how it was called.
echo "$@" >> "$CALLS"
case "$1" in login) cat >> "$CALLS"; echo >> "$CALLS";; push) exit "${PUSH_FAILS:-0}";; esac
"""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Provide a docker that records its calls, and a checkout of one commit."""
    program, calls = tmp_path / "bin/docker", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("CALLS", str(calls))
    root = tmp_path / "kiln"
    root.mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(images, "ROOT", root)
    return calls


def test_an_image_is_built_pushed_and_set_in_the_stack(cloud: None, docker: Path) -> None:
    output_of(up.main, "--yes")
    registry = stack.outputs("kiln")["Registry"]
    commit = images.current_commit()
    text = output_of(image.main, "--device", "cuda", "--build-arg", "BASE=debian:12")
    name = f"{registry}:{__version__}-{commit[:12]}-cuda"
    login, password, build, push, logout = (docker.read_text().splitlines()[n] for n in (1, 2, 0, 3, 4))
    assert build == (
        f"build --file {images.ROOT}/envs/Dockerfile --tag {name} --build-arg DEVICE=cuda"
        f" --build-arg VERSION={__version__} --build-arg REVISION={commit} --build-arg BASE=debian:12"
        f" {images.ROOT}"
    )
    host = registry.partition("/")[0]
    assert login == f"login --username AWS --password-stdin {host}"
    assert password
    assert password not in build + push + login + text
    assert (push, logout) == (f"push {name}", f"logout {host}")
    assert f"export KILN_IMAGE={name}" in text
    assert stack.parameters(stack.find("kiln"))["GpuImageTag"] == name.rpartition(":")[2]
    assert stack.parameters(stack.find("kiln")).get("CpuImageTag", "none") == "none"


def test_an_image_in_the_registry_is_not_built_again(cloud: None, docker: Path) -> None:
    output_of(up.main, "--yes")
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"}
    manifest |= {"config": {"mediaType": "m", "size": 1, "digest": "sha256:1"}, "layers": []}
    tag = f"{__version__}-{images.current_commit()[:12]}-cpu"
    boto3.client("ecr").put_image(repositoryName="kiln", imageManifest=json.dumps(manifest), imageTag=tag)
    assert "is in the registry already" in output_of(image.main)
    assert not docker.exists()
    assert stack.outputs("kiln")["CpuImage"].endswith(tag)


def test_image_errors_have_a_reason(
    cloud: None, docker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Run `make aws-up`" in error_of(capsys, image.main)
    output_of(up.main, "--yes")
    monkeypatch.setenv("PUSH_FAILS", "3")
    assert "docker push ended with 3" in error_of(capsys, image.main)
    assert stack.outputs("kiln")["CpuImage"].endswith(":none"), "the stack names no image that was not pushed"
    with pytest.raises(ConfigError, match="expected builder on this machine"):
        images.find_engine("builder")
    (images.ROOT / "changed.py").write_text("1\n")
    assert "Commit them." in error_of(capsys, image.main)
