"""Resources of jobs and local files in the config; the checks before submission are tested in tests/batch."""

import pytest
from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING

from kiln.aws import batch
from kiln.aws.batch import JobResources, smallest_fit
from kiln.errors import ConfigError


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        (JobResources(1, 1000), JobResources(1, 2048)),
        (JobResources(1, 2048), JobResources(1, 2048)),
        (JobResources(1, 5000), JobResources(1, 5120)),
        (JobResources(1, 8000), JobResources(1, 8192)),
        (JobResources(1, 9000), JobResources(2, 9216)),
        (JobResources(3, 2000), JobResources(4, 8192)),
        (JobResources(4, 60000), JobResources(8, 61440)),
        (JobResources(8, 12000, 1), JobResources(8, 16384, 1)),
        (JobResources(16, 122880), JobResources(16, 122880)),
    ],
)
def test_resources_are_never_less_than_requested(requested: JobResources, expected: JobResources):
    assert smallest_fit(requested) == expected
    assert expected.threads in VALID_RESOURCES_MAPPING[expected.mem_mb]


@pytest.mark.parametrize("requested", [JobResources(17, 2048), JobResources(1, 122881)])
def test_more_than_a_job_can_have_is_an_error(requested: JobResources):
    with pytest.raises(ConfigError, match="at most 16 threads and 122880 MB"):
        smallest_fit(requested)


def test_local_files_of_the_configured_datasets_are_listed():
    config = {
        "datasets": ["naip", "sentinel2"],
        "model": {"checkpoint": "untrained"},
        "worldcover": {"archive": "sample/rgbnir"},
        "naip": {"manifest": "s3://naip-analytic/year=2021/manifest.txt", "archive": "/data/naip"},
        "sentinel2": {
            "items": None,
            "inventory": "https://somewhere/manifest.json",
            "inventory_root": None,
            "archive": "s3://sentinel-cogs",
            "area": "area.geojson",
            "rewrite": ["https://old=/mirror", "https://new=s3://bucket/year=2021"],
        },
        "index": {"published": [{"files": "s3://bucket/x"}, {"files": "/data/y"}]},
    }
    assert batch.local_paths(config) == [
        "naip.archive: /data/naip",
        "sentinel2.area: area.geojson",
        "sentinel2.rewrite: /mirror",
        "index.published: /data/y",
    ]


def test_credentials_are_not_sent_to_jobs():
    role, queue = "arn:aws:iam::1:role/jobs", "arn:aws:batch:us-east-1:1:job-queue/cpu"
    with pytest.raises(ConfigError, match="AWS_SESSION_TOKEN: credentials would travel to the jobs in plain text"):
        batch.check_jobs(queue, role, "kiln:1", ("AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"))


@pytest.mark.parametrize(
    ("queue", "role", "image", "message"),
    [
        (None, None, "$KILN_IMAGE", "KILN_IMAGE: expected an image of envs/Dockerfile"),
        ("cpu", None, "kiln:1", "SNAKEMAKE_AWS_BATCH_JOB_QUEUE: expected the ARN of the queue, got 'cpu'"),
        ("arn:aws:batch:us-east-1:1:job-queue/x", "arn:aws:batch:us-east-1:1:job-queue/x", "kiln:1", "ARN of the role"),
    ],
)
def test_jobs_need_image_queue_and_role(queue: str | None, role: str | None, image: str, message: str):
    with pytest.raises(ConfigError, match=message.replace("$", r"\$")):
        batch.check_jobs(queue, role, image, ())


def archive_config(allow: bool) -> dict:
    section = {"archive": "s3://anywhere", "archive_region": "eu-central-1"}
    return {"any": section, "plan": {"price_per_gb_moved": 0.02}, "allow_cross_region": allow}


def test_an_archive_of_another_region_is_an_error_unless_allowed(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    plans = [str(tmp_path / "plan")]
    with pytest.raises(ConfigError, match=r"archive is in eu-central-1 and the jobs run in us-west-2.*snakemake plan"):
        batch.check_archive_region("any", archive_config(False), plans)
    assert "run `snakemake plan`" in batch.check_archive_region("any", archive_config(True), plans)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    assert batch.check_archive_region("any", archive_config(False), plans) == ""
