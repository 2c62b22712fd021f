"""One run of three datasets on the lab, told in three acts; every test of it asks what it left.

1. A worker's container is stopped under way, and tried again; a scene cannot be read, and its shard fails, every time.
   Then the driver's machine vanishes.
2. Another driver, on a fresh clone, goes on: all but that shard is done.
3. The scene is mended, and the same command does the one shard and what is made of it.
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
    # What is not in the plugin's table, so that a job that was shrunk would show.
    "resources": {"embed_threads": 1, "embed_mem_mb": 5000, "merge_mem_mb": 3500, "batch_size": 8, "read_threads": 1},
}


@dataclass
class Act:
    """What a driver said, the jobs it submitted, the bucket's keys before and after, and what was asked of AWS."""

    said: str
    before: dict[str, str]
    after: dict[str, str] = field(default_factory=dict)
    jobs: list[dict] = field(default_factory=list)
    requests: Requests = field(default_factory=lambda: Requests([]))
    seconds: float = 0
    logs: dict[str, str] = field(default_factory=dict)  # of embedding jobs, by their keys

    def of_rule(self, rule: str) -> list[dict]:
        return [j for j in self.jobs if j["jobName"].startswith(f"snakejob-{rule}-")]


@dataclass
class Story:
    """Three acts; `stopped` is the name of the shard whose container was stopped in the first."""

    lab: Lab
    image: Image
    folder: Path
    stopped: str
    killed: Act
    resumed: Act
    mended: Act


def told(lab: Lab, image: Image, folder: Path) -> Story:
    """Let it happen."""
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

    def befallen() -> bool:
        """Stop the first container that embeds WorldCover; so when its shard is there all the same."""
        if not stopped:
            for container in lab.containers("snakejob-embed_worldcover"):
                lab.stop(container)
                stopped.append(shard_of(lab, container))
                break
            return False
        return bool(matching(objects(lab, RUN), f"/{stopped[0]}.parquet"))

    def play(act: Act, run: object) -> Act:
        known = {j["jobId"] for j in lab.jobs()}
        start = time.monotonic()
        with lab.counted() as act.requests:
            act.said = run()  # type: ignore[operator]
            act.seconds = time.monotonic() - start
            settle(lab)
        act.after = objects(lab, RUN)
        logs = matching(act.after, "logs/lab/embed_", ".log")
        act.logs = {k: s3.get_object(Bucket=RUN, Key=k)["Body"].read().decode() for k in logs}
        act.jobs = [j for j in lab.jobs() if j["jobId"] not in known]
        return act

    killed = play(Act("", {}), lambda: first.run_until("--jobs", "3", done=befallen))
    assert stopped, killed.said
    second = Driver(lab, folder / "second", image.name, RUN, CONFIG)
    resumed = play(Act("", killed.after), lambda: second.run("--jobs", "4", code=1))
    s3.put_object(Bucket=ARCHIVE, Key=BROKEN, Body=whole)
    mended = play(Act("", resumed.after), lambda: second.run("--jobs", "4"))
    for name, act in (("driver killed", killed), ("resumed", resumed), ("mended", mended)):
        asked = f"{act.requests.split()}, {dict(act.requests.s3)}"
        print(f"{name}: {len(act.jobs)} jobs, {act.seconds:.0f} s, S3 requests: {asked}")
    return Story(lab, image, folder, stopped[0], killed, resumed, mended)


def shard_of(lab: Lab, container: str) -> str:
    """The shard that a job's container was told to make."""
    job = next(j for j in lab.jobs() if container.endswith(j["jobId"]))
    found = next(d for d in lab.definitions() if d["jobDefinitionArn"] == job["jobDefinition"])
    return shards_told(found)[0].partition("/")[2]


def shards_told(definition: dict) -> list[str]:
    """The shards that a job is to make, as partition/name."""
    command = " ".join(definition["containerProperties"]["command"])
    return [f"{p}/{name}" for p, name in re.findall(r"partition=([\w-]+),shard=([\w.-]+)", command)]


def settle(lab: Lab, seconds: float = 900) -> None:
    """Wait for jobs that nobody waits for."""
    until = time.monotonic() + seconds
    while lab.jobs("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"):
        assert time.monotonic() < until, "jobs still run"
        time.sleep(0.5)
