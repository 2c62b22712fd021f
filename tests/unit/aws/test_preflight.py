"""The checks before submission that need no account; tests/batch has the others."""

import pytest

from kiln.aws import preflight
from kiln.errors import ConfigError
from kiln.io import storage
from kiln.workflow.config import load_config
from kiln.workflow.run import Run
from tests import ROOT


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
    assert preflight.local_paths(config) == [
        "naip.archive: /data/naip",
        "sentinel2.area: area.geojson",
        "sentinel2.rewrite: /mirror",
        "index.published: /data/y",
    ]


def test_credentials_are_not_sent_to_jobs():
    role, queue = "arn:aws:iam::1:role/jobs", "arn:aws:batch:us-east-1:1:job-queue/cpu"
    with pytest.raises(ConfigError, match="AWS_SESSION_TOKEN: credentials would travel to the jobs in plain text"):
        preflight.check_jobs(queue, role, "kiln:1", ("AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"))


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
        preflight.check_jobs(queue, role, image, ())


def far_run(allow: bool) -> Run:
    config = load_config([ROOT / "config/config.yaml"])
    config["naip"] |= {"archive": "s3://anywhere", "archive_region": "eu-central-1"}
    return Run(config | {"allow_cross_region": allow})


def test_an_archive_of_another_region_is_an_error_unless_allowed(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.chdir(tmp_path)  # a folder without a plan
    with pytest.raises(ConfigError, match=r"archive is in eu-central-1 and the jobs run in us-west-2.*snakemake plan"):
        preflight.RegionCheck(far_run(False)).check("naip")
    preflight.RegionCheck(far_run(True)).check("naip")
    assert "run `snakemake plan`" in caplog.text
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    preflight.RegionCheck(far_run(False)).check("naip")


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_the_plugin_must_look_where_the_rest_writes(aws, monkeypatch, variable):
    aws("")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(ConfigError, match=r"got http://store:9000\. Set AWS_ENDPOINT_URL_S3=http://store:9000 instead"):
        preflight.check_endpoint("s3://results/run", "http://store:9000")
    preflight.check_endpoint("s3://results/run", "")
    monkeypatch.setenv(variable, "http://store:9000")
    storage.s3_client.cache_clear()
    preflight.check_endpoint("s3://results/run", "http://store:9000/")
    with pytest.raises(ConfigError, match="expected http://store:9000, which AWS settings name, got http://other"):
        preflight.check_endpoint("s3://results/run", "http://other:9000")
