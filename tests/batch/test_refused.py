"""Wrong settings are reported before the run starts: no job is registered or submitted, and no file is written."""

import re
from pathlib import Path

import pytest

from kiln.formats.fingerprint import shard_name
from kiln.formats.plan_file import ShardPlan, write_plan
from tests.batch.driver import Driver
from tests.batch.lab import UNKNOWN_KEY, Lab

BUCKET, ELSEWHERE, ARCHIVE = "kiln-lab-refused", "kiln-lab-elsewhere", "kiln-lab-far"
CONFIG = {
    "run": "refused",
    "datasets": ["worldcover"],
    "model": {"untrained": {"seed": 1, "dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 2}},
    "worldcover": {
        "archive": f"s3://{ARCHIVE}/rgbnir",
        "years": [2021],
        "region": [-97, 43, -96, 44],
        "pixels_per_degree": 120,
        "chip_size": 24,
    },
}
IMAGE = "localhost/kiln:any"


@pytest.fixture(scope="module")
def driver(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A driver whose archive is in another region."""
    s3 = lab.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    location = {"LocationConstraint": "eu-central-1"}
    for bucket in (ELSEWHERE, ARCHIVE):
        lab.client("s3", "eu-central-1").create_bucket(Bucket=bucket, CreateBucketConfiguration=location)
    return Driver(lab, tmp_path_factory.mktemp("refused") / "driver", IMAGE, BUCKET, CONFIG)


def refused(driver: Driver, *arguments: str, **environment: str | None) -> str:
    """Run Snakemake, which must fail before it changes anything on Batch or S3; return its output as one line."""
    with driver.lab.counted() as requests:
        text = driver.run(*arguments, code=1, **environment)
    assert not {"registerjobdefinition", "submitjob"} & set(requests.batch)
    assert not {"PutObject", "CreateBucket", "DeleteBucket", "CreateMultipartUpload"} & set(requests.s3)
    assert "Traceback (most recent call last)" not in text
    return re.sub(r"\s+", " ", text)


ALLOW_CROSS_REGION = ("--config", "allow_cross_region=True")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"AWS_DEFAULT_REGION": None}, "AWS_DEFAULT_REGION"),
        ({"KILN_BUCKET": None}, "set KILN_BUCKET"),
        ({"KILN_BUCKET": ""}, "set KILN_BUCKET"),
        ({"KILN_BUCKET": "kiln-lab-nowhere"}, "bucket kiln-lab-nowhere does not exist"),
        ({"KILN_BUCKET": ELSEWHERE}, f"bucket {ELSEWHERE}: expected a bucket in us-east-1"),
        ({"AWS_ACCESS_KEY_ID": UNKNOWN_KEY}, "AWS does not accept these credentials"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "expected AWS credentials, got none"),
        (
            {"SNAKEMAKE_STORAGE_S3_ACCESS_KEY": "AKIADRIVER", "SNAKEMAKE_STORAGE_S3_SECRET_KEY": "s"},
            "access_key, secret_key: credentials would travel to the jobs in plain text",
        ),
        ({"SNAKEMAKE_AWS_BATCH_JOB_QUEUE": None}, "SNAKEMAKE_AWS_BATCH_JOB_QUEUE"),
        ({"SNAKEMAKE_AWS_BATCH_JOB_QUEUE": "queue"}, "expected the ARN of the queue, got 'queue'"),
        ({"SNAKEMAKE_AWS_BATCH_JOB_QUEUE": "arn:aws:batch:us-east-1:123456789012:job-queue/gone"}, "does not exist"),
        ({"SNAKEMAKE_AWS_BATCH_JOB_QUEUE": "arn:aws:batch:us-west-2:123456789012:job-queue/far"}, "in us-west-2"),
        ({"SNAKEMAKE_AWS_BATCH_JOB_ROLE": None}, "SNAKEMAKE_AWS_BATCH_JOB_ROLE"),
        ({"SNAKEMAKE_AWS_BATCH_JOB_ROLE": "role"}, "expected the ARN of the role, got 'role'"),
        ({"KILN_IMAGE": None}, "KILN_IMAGE: expected an image of envs/Dockerfile"),
    ],
)  # fmt: skip
def test_incomplete_or_wrong_environment_is_reported(driver: Driver, environment: dict[str, str | None], message: str):
    assert message in refused(driver, *ALLOW_CROSS_REGION, **environment)


def test_credentials_among_the_variables_of_jobs_are_refused(driver: Driver):
    assert "--envvars AWS_SECRET_ACCESS_KEY: credentials would travel" in refused(
        driver, *ALLOW_CROSS_REGION, "--envvars", "AWS_DEFAULT_REGION", "AWS_SECRET_ACCESS_KEY"
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("worldcover={archive: sample/rgbnir}", "worldcover.archive: sample/rgbnir"),
        ("model={checkpoint: clay.ckpt}", "model.checkpoint: clay.ckpt"),
        ("index={published: [{name: x, files: /data/x, model: m, layout: clay-v1}]}", "index.published: /data/x"),
    ],
)
def test_local_files_are_refused(driver: Driver, config: str, message: str):
    text = refused(driver, "--config", config)
    assert "jobs on other machines cannot read local files" in text
    assert message in text


def test_archive_in_another_region_is_refused_unless_allowed(driver: Driver, tmp_path: Path):
    """Without a plan, the message names the command that plans. With a plan, it names gigabytes and price.

    If cross-region reads are allowed, gigabytes and price are printed too. A shard requested by name is refused like
    the others. If all shards exist, nothing is reported.
    """
    text = refused(driver)
    assert "the archive is in eu-central-1 and the jobs run in us-east-1" in text
    assert "run `snakemake plan`" in text
    plan = sorted(
        re.findall(rf"s3://{BUCKET}/(\S+/worldcover-\S+/plan-\w+\.jsonl\.gz)", driver.run("-n", *ALLOW_CROSS_REGION))
    )[0]
    shard_names = [shard_name(f"s{n}", ("1",)) for n in range(2)]
    lines = [
        ShardPlan("worldcover", "2021", name, ("1",), 24, 9, 250_000_000_000, f"s3://{ARCHIVE}/rgbnir")
        for name in shard_names
    ]
    write_plan(lines, str(tmp_path / "plan"), str(tmp_path / "names"))
    names = plan.replace(".jsonl.gz", ".json")
    uploaded = [plan, names]
    driver.lab.client("s3").upload_file(str(tmp_path / "plan"), BUCKET, plan)
    driver.lab.client("s3").upload_file(str(tmp_path / "names"), BUCKET, names)
    try:
        text = refused(driver)
        assert "2 shards read at most 500.0 GB, 10.00 at 0.02 a GB between regions" in text
        assert "set allow_cross_region: true" in text
        assert "500.0 GB, 10.00 at 0.02" in driver.run("-n", *ALLOW_CROSS_REGION)
        shards = [f"{plan.rpartition('/')[0]}/shards/2021/{name}.parquet" for name in shard_names]
        assert "set allow_cross_region: true" in refused(driver, "--", shards[0])
        uploaded += shards
        for shard in shards:
            driver.lab.client("s3").put_object(Bucket=BUCKET, Key=shard, Body=b"")
        assert "eu-central-1" not in driver.run("-n", "--", "worldcover")
    finally:
        for key in uploaded:
            driver.lab.client("s3").delete_object(Bucket=BUCKET, Key=key)
