"""A simulated AWS on loopback: S3, IAM, EC2, CloudFormation, and a Batch that runs its jobs in containers.

moto's server (server.py) starts the containers through podman's Docker API. Containers share the host's network. Like a
job on AWS they get only the credentials of their role; in addition, they get the address of the simulated AWS.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3

from tests import ROOT
from tests.batch.server import ROLE, ROLE_KEY

REGION = "us-east-1"
TOOLS = ("podman", "buildah", "runc", "debootstrap", "setpriv")
BASE = "localhost/kiln-lab:bookworm"
PACKAGES = "ca-certificates,python3,python3-venv,git"
UNKNOWN_KEY = "AKIAUNKNOWN"  # an access key that the simulated AWS rejects
# For podman without systemd, on a machine with low hard limits.
CONTAINERS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=1000:1000"]
netns = "host"
env = [{env}]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
"""
ACTIVE = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


@dataclass(frozen=True)
class Lab:
    """A running lab. `queue` and `role` are ARNs, `base` is the name of an image."""

    folder: Path
    endpoint: str
    queue: str
    role: str
    base: str = BASE

    @property
    def env(self) -> dict[str, str]:
        """The environment of a driver: this process's, with the AWS settings of the lab only."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "SNAKEMAKE_"))}
        return inherited | driver_env(self.endpoint) | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "SNAKEMAKE_AWS_BATCH_JOB_QUEUE": self.queue,
            "SNAKEMAKE_AWS_BATCH_JOB_ROLE": self.role,
        }  # fmt: skip

    def client(self, service: str, region: str = REGION) -> Any:
        """Return a boto3 client of the lab."""
        return client(service, self.endpoint, region)

    def tool(self, *command: str, **options: Any) -> str:
        """Run podman or buildah with the lab's settings; return its output."""
        return run_command(list(command), env=self.env, **options)

    def labels(self, image: str) -> dict[str, str]:
        """Return the labels of an image."""
        return json.loads(self.tool("podman", "image", "inspect", image))[0]["Config"]["Labels"]

    def definitions(self) -> list[dict[str, Any]]:
        """Return all registered job definitions, including those that the plugin deregistered."""
        return self.client("batch").describe_job_definitions()["jobDefinitions"]

    def jobs(self, *status: str) -> list[dict[str, Any]]:
        """Return the jobs of the queue, oldest first: those with one of the states, or all."""
        batch = self.client("batch")
        found = [
            job
            for state in status or (*ACTIVE, "SUCCEEDED", "FAILED")
            for job in batch.list_jobs(jobQueue=self.queue, jobStatus=state)["jobSummaryList"]
        ]
        return sorted(found, key=lambda j: j["createdAt"])

    def log(self, job: str) -> str:
        """Return the log of a job that has ended."""
        found = self.client("batch").describe_jobs(jobs=[job])["jobs"][0]
        stream = found["container"]["logStreamName"]
        events = self.client("logs").get_log_events(logGroupName="/aws/batch/job", logStreamName=stream)
        return "\n".join(e["message"] for e in events["events"])

    def containers(self, name: str = "") -> list[str]:
        """Return the names of running containers of this lab's jobs. They begin with the job's name."""
        running = self.tool("podman", "ps", "--format", "{{.Names}}").split()
        suffixes = tuple(job["jobId"].replace(":", "-") for job in self.jobs())
        return [c for c in running if name in c and c.endswith(suffixes)]

    def stop(self, container: str) -> None:
        """Stop a container at once, as when its node is interrupted."""
        self.tool("podman", "stop", "--time", "0", container)

    @contextmanager
    def counted(self) -> Iterator["Requests"]:
        """Record the requests to the simulated AWS within the block."""
        path = self.folder / "requests.jsonl"
        start = path.stat().st_size if path.exists() else 0
        requests = Requests([])
        yield requests
        with path.open() as f:
            f.seek(start)
            requests.lines.extend(map(json.loads, f))


@dataclass(frozen=True)
class Requests:
    """Requests, as the server recorded them."""

    lines: list[dict[str, Any]]

    @property
    def s3(self) -> Counter[str]:
        """The number of S3 requests by operation."""
        return Counter(kind(line) for line in self.lines if line["service"] in ("s3", ""))

    def split(self) -> str:
        """Return a text: how many S3 requests came from the driver, and how many from the jobs."""
        jobs = Requests([line for line in self.lines if line["key"] == ROLE_KEY]).s3.total()
        return f"{self.s3.total() - jobs} of the driver, {jobs} of the jobs"

    @property
    def batch(self) -> Counter[str]:
        """The number of Batch requests, by the last part of their path."""
        return Counter(line["path"].rpartition("/")[2] for line in self.lines if line["service"] == "batch")

    @property
    def keys(self) -> set[str]:
        """The access keys that signed the requests."""
        return {line["key"] for line in self.lines}


def kind(line: dict[str, Any]) -> str:
    """Return the operation of an S3 request, from its method, path and query."""
    method, query = line["method"], parse_qs(line["query"], keep_blank_values=True)
    if "/" not in line["path"].strip("/"):  # a request for a bucket
        names = {"GET": "ListObjects", "HEAD": "HeadBucket", "PUT": "CreateBucket", "DELETE": "DeleteBucket"}
        for word, name in (("location", "GetBucketLocation"), ("delete", "DeleteObjects"), ("uploads", "ListUploads")):
            if word in query:
                return name
        return names.get(method, method)
    if "uploads" in query:
        return "CreateMultipartUpload"
    if "uploadId" in query:
        return {"PUT": "UploadPart", "POST": "CompleteMultipartUpload"}.get(method, "AbortMultipartUpload")
    return f"{method.capitalize()}Object"


def driver_env(endpoint: str) -> dict[str, str]:
    """Return variables that point AWS clients at the lab, with an access key that only drivers have."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "AKIADRIVER",
        "AWS_SECRET_ACCESS_KEY": "driver",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
    }


def container_env(endpoint: str) -> dict[str, str]:
    """Return the variables of every container. On AWS too, containers get their credentials from such an address."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": endpoint + ROLE,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def client(service: str, endpoint: str, region: str = REGION) -> Any:
    """Return a boto3 client of the lab that ignores the environment."""
    keys = {"aws_access_key_id": "AKIADRIVER", "aws_secret_access_key": "driver"}
    return boto3.client(service, endpoint_url=endpoint, region_name=region, **keys)


def run_command(command: list[str], **options: Any) -> str:
    """Run a command and return its stdout. Raise RuntimeError with its output if it fails."""
    done = subprocess.run(command, text=True, capture_output=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def check_tools() -> None:
    """Install missing tools, as root on Debian. Raise RuntimeError if that is not possible."""
    if os.geteuid():
        raise RuntimeError("tests of AWS Batch run containers and need root: sudo make test-batch, or leave them out")
    missing = [t for t in TOOLS if not shutil.which(t)]
    if missing and not shutil.which("apt-get"):
        raise RuntimeError(f"tests of AWS Batch need {', '.join(missing)}: install the packages of these names")
    if missing:
        quiet = {"env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
        run_command(["apt-get", "update", "-qq"], **quiet)
        run_command(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], **quiet)


def make_base(folder: Path, env: dict[str, str]) -> None:
    """Build an image of Debian with Python and git. It takes minutes, so later runs use the same image."""
    if subprocess.run(["podman", "image", "exists", BASE], env=env).returncode == 0:
        return
    root = folder / "rootfs"
    run_command(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)])
    archive = folder / "rootfs.tar"
    run_command(["tar", "--create", "--file", str(archive), "--directory", str(root), "."])
    run_command(["podman", "import", str(archive), BASE], env=env)
    archive.unlink()
    shutil.rmtree(root)


def start(stack: ExitStack, command: list[str], log: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a process that ends when the stack closes or when this process dies."""
    with log.open("w") as stderr:
        command = ["setpriv", "--pdeathsig", "TERM", *command]
        process = subprocess.Popen(command, text=True, stderr=stderr, **options)
    stack.callback(end, process)
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Terminate a process; kill it after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def account(endpoint: str) -> tuple[str, str]:
    """Create a queue and a role for its jobs; return their ARNs."""
    iam, ec2, batch = (client(s, endpoint) for s in ("iam", "ec2", "batch"))
    role = iam.create_role(RoleName="kiln-lab", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    iam.create_instance_profile(InstanceProfileName="kiln-lab")
    iam.add_role_to_instance_profile(InstanceProfileName="kiln-lab", RoleName="kiln-lab")
    machines = batch.create_compute_environment(
        computeEnvironmentName="kiln-lab",
        type="MANAGED",
        state="ENABLED",
        serviceRole=role,
        computeResources={
            "type": "EC2",
            "minvCpus": 0,
            "maxvCpus": 64,
            "desiredvCpus": 0,
            "instanceTypes": ["optimal"],
            "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
            "securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
            "instanceRole": role.replace(":role/", ":instance-profile/"),
        },
    )["computeEnvironmentArn"]
    order = [{"order": 1, "computeEnvironment": machines}]
    queue = batch.create_job_queue(jobQueueName="kiln-lab", state="ENABLED", priority=1, computeEnvironmentOrder=order)[
        "jobQueueArn"
    ]
    return queue, role


def up(stack: ExitStack) -> Lab:
    """Start a lab. Its servers, containers and folder are removed when the stack closes."""
    check_tools()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kiln-lab-")))
    socket = folder / "podman.sock"
    server = start(
        stack,
        [sys.executable, "-m", "tests.batch.server", "--requests", str(folder / "requests.jsonl"),
         "--refuse", UNKNOWN_KEY],
        folder / "aws.log",
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"DOCKER_HOST": f"unix://{socket}", "MOTO_DOCKER_NETWORK_MODE": "host"},
    )  # fmt: skip
    port = (server.stdout.readline() if server.stdout else "").strip()
    if not re.fullmatch(r"\d+", port):
        raise RuntimeError(f"moto's server did not start:\n{(folder / 'aws.log').read_text()}")
    endpoint = f"http://127.0.0.1:{port}"
    variables = ", ".join(json.dumps(f"{k}={v}") for k, v in container_env(endpoint).items())
    (folder / "containers.conf").write_text(CONTAINERS.format(env=variables))
    env = os.environ | {"CONTAINERS_CONF": str(folder / "containers.conf")}
    start(stack, ["podman", "system", "service", "--time=0", f"unix://{socket}"], folder / "podman.log", env=env)
    for _ in range(100):
        if socket.exists():
            break
        time.sleep(0.1)
    else:
        raise RuntimeError(f"podman's service did not start:\n{(folder / 'podman.log').read_text()}")
    lab = Lab(folder, endpoint, *account(endpoint))
    stack.callback(remove_containers, lab)
    return lab


def remove_containers(lab: Lab) -> None:
    """End all jobs and remove their containers."""
    for job in lab.jobs(*ACTIVE):
        lab.client("batch").terminate_job(jobId=job["jobId"], reason="the lab ends")
    names = lab.tool("podman", "ps", "--all", "--format", "{{.Names}}").split()
    suffixes = tuple(job["jobId"].replace(":", "-") for job in lab.jobs())
    for name in names:
        if name.endswith(suffixes):
            subprocess.run(["podman", "rm", "--force", name], env=lab.env, capture_output=True)


@contextmanager
def running() -> Iterator[Lab]:
    """Run a lab within the block."""
    with ExitStack() as stack:
        yield up(stack)
