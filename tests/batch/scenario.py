"""One run of three datasets on the lab, in three steps. The tests check the state after each step.

1. The container of a worker is stopped during its job, and the job is retried. A scene cannot be read, so every attempt
   at its shard fails. Then the driver is killed.
2. Another driver, in a fresh clone, continues the run. It completes everything except that shard.
3. The scene is repaired. The same command embeds that shard and everything that depends on it.
"""

import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.batch.driver import Driver, matching, objects, upload
from tests.batch.image import Image
from tests.batch.lab import ROOT, Lab, Requests

RUN, ARCHIVE = "kiln-lab-runs", "kiln-lab-archive"
BROKEN = "naip/sd/2021/600cm/rgbir_cog/43096/m_4309635_ne_14_1_20210706.tif"
CONFIG = {
    "run": "lab",
    "datasets": ["worldcover", "naip", "sentinel2"],
    "model": {"untrained": {"seed": 1, "dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 2}},
    "worldcover": {
        "archive": f"s3://{ARCHIVE}/worldcover/rgbnir",
        "years": [2021],
        "region": [-97, 43, -95, 44],
        "pixels_per_degree": 120,
        "chip_size": 24,
        "columns_per_shard": 5,
    },
    "naip": {
        "manifest": f"s3://{ARCHIVE}/naip/manifest.txt",
        "archive": f"s3://{ARCHIVE}/naip",
        "years": [2021],
        "scenes_per_shard": 1,
        "chip_size": 128,
    },
    "sentinel2": {
        "items": f"s3://{ARCHIVE}/sentinel2/items.txt",
        "archive": f"s3://{ARCHIVE}/sentinel2",
        "items_per_shard": 4,
    },
    "max_failed_fraction": 0,
    "pictures": {"neighbours": 4},
    # Memory sizes that are not in the plugin's table: a job that gets less memory than it requests would be visible.
    "resources": {"embed_threads": 1, "embed_mem_mb": 5000, "merge_mem_mb": 3500, "batch_size": 8, "read_threads": 1},
}


@dataclass
class Step:
    """A driver's output, its jobs, the bucket's keys before and after, and the requests to AWS."""

    output: str
    before: dict[str, str]
    after: dict[str, str] = field(default_factory=dict)
    jobs: list[dict] = field(default_factory=list)
    requests: Requests = field(default_factory=lambda: Requests([]))
    seconds: float = 0
    logs: dict[str, str] = field(default_factory=dict)  # of embedding jobs, by their keys

    def of_rule(self, rule: str) -> list[dict]:
        """Return the jobs of a rule."""
        return [j for j in self.jobs if j["jobName"].startswith(f"snakejob-{rule}-")]


@dataclass
class Scenario:
    """The three steps. `stopped` is the name of the shard whose container was stopped in the first one."""

    lab: Lab
    image: Image
    folder: Path
    stopped: str
    killed: Step
    resumed: Step
    repaired: Step


def run_scenario(lab: Lab, image: Image, folder: Path) -> Scenario:
    """Run the three steps."""
    s3 = lab.client("s3")
    for bucket in (RUN, ARCHIVE):
        s3.create_bucket(Bucket=bucket)
    make = [sys.executable, "-m", "kiln.sample", "--out", str(folder / "sample"), "--pixels-per-degree", "120"]
    subprocess.run([*make, "--years", "2021", "--tiles", "N43W097", "N43W096"], cwd=ROOT, check=True)
    upload(lab, folder / "sample", f"s3://{ARCHIVE}")
    whole = (folder / "sample" / BROKEN).read_bytes()
    s3.put_object(Bucket=ARCHIVE, Key=BROKEN, Body=whole[: len(whole) // 3])

    stopped: list[str] = []
    first = Driver(lab, folder / "first", image.name, RUN, CONFIG)

    def stopped_and_retried() -> bool:
        """Stop the first container that embeds WorldCover. Return True once its shard exists nevertheless."""
        if not stopped:
            for container in lab.containers("snakejob-embed_worldcover"):
                lab.stop(container)
                stopped.append(shard_of(lab, container))
                break
            return False
        return bool(matching(objects(lab, RUN), f"/{stopped[0]}.parquet"))

    def record(step: Step, run: object) -> Step:
        """Run a step and record its results."""
        known = {j["jobId"] for j in lab.jobs()}
        start = time.monotonic()
        with lab.counted() as step.requests:
            step.output = run()  # type: ignore[operator]
            step.seconds = time.monotonic() - start
            wait_for_jobs(lab)
        step.after = objects(lab, RUN)
        logs = matching(step.after, "logs/lab/embed_", ".log")
        step.logs = {k: s3.get_object(Bucket=RUN, Key=k)["Body"].read().decode() for k in logs}
        step.jobs = [j for j in lab.jobs() if j["jobId"] not in known]
        return step

    killed = record(Step("", {}), lambda: first.run_until("--jobs", "3", done=stopped_and_retried))
    assert stopped, killed.output
    second = Driver(lab, folder / "second", image.name, RUN, CONFIG)
    resumed = record(Step("", killed.after), lambda: second.run("--jobs", "4", code=1))
    s3.put_object(Bucket=ARCHIVE, Key=BROKEN, Body=whole)
    repaired = record(Step("", resumed.after), lambda: second.run("--jobs", "4"))
    for name, step in (("driver killed", killed), ("resumed", resumed), ("repaired", repaired)):
        requests = f"{step.requests.split()}, {dict(step.requests.s3)}"
        print(f"{name}: {len(step.jobs)} jobs, {step.seconds:.0f} s, S3 requests: {requests}")
    return Scenario(lab, image, folder, stopped[0], killed, resumed, repaired)


def shard_of(lab: Lab, container: str) -> str:
    """Return the name of the shard that a job's container embeds."""
    job = next(j for j in lab.jobs() if container.endswith(j["jobId"]))
    found = next(d for d in lab.definitions() if d["jobDefinitionArn"] == job["jobDefinition"])
    return shards_of(found)[0].partition("/")[2]


def shards_of(definition: dict) -> list[str]:
    """Return the shards that the jobs of a definition embed, as partition/name."""
    command = " ".join(definition["containerProperties"]["command"])
    return [f"{p}/{name}" for p, name in re.findall(r"partition=([\w-]+),shard=([\w.-]+)", command)]


def wait_for_jobs(lab: Lab, seconds: float = 900) -> None:
    """Wait until no job runs, including the jobs of a killed driver."""
    until = time.monotonic() + seconds
    while lab.jobs("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"):
        assert time.monotonic() < until, "jobs still run"
        time.sleep(0.5)
