"""What a job asks of AWS Batch; refusals before submission are tested on a lab, in tests/batch."""

import pytest
from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING

from kiln.aws import batch
from kiln.aws.batch import Share, fitted
from kiln.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (Share(1, 1000), Share(1, 2048)),
        (Share(1, 2048), Share(1, 2048)),
        (Share(1, 5000), Share(1, 5120)),
        (Share(1, 8000), Share(1, 8192)),
        (Share(1, 9000), Share(2, 9216)),
        (Share(3, 2000), Share(4, 8192)),
        (Share(4, 60000), Share(8, 61440)),
        (Share(8, 12000, 1), Share(8, 16384, 1)),
        (Share(16, 122880), Share(16, 122880)),
    ],
)
def test_a_share_is_never_less_than_what_was_asked_for(asked: Share, given: Share):
    assert fitted(asked) == given
    assert given.threads in VALID_RESOURCES_MAPPING[given.mem_mb]


@pytest.mark.parametrize("asked", [Share(17, 2048), Share(1, 122881)])
def test_more_than_a_job_may_have(asked: Share):
    with pytest.raises(ConfigError, match="more than a job of AWS Batch may have: 16 threads and 122880 MB"):
        fitted(asked)


def test_files_of_this_machine_are_named_of_the_datasets_that_are_done():
    config = {
        "datasets": ["naip", "sentinel2"],
        "model": {"checkpoint": "untrained"},
        "worldcover": {"archive": "sample/rgbnir"},
        "naip": {"manifest": "s3://naip-analytic/manifest.txt", "archive": "/data/naip"},
        "sentinel2": {
            "items": None,
            "inventory": "https://somewhere/manifest.json",
            "inventory_root": None,
            "archive": "s3://sentinel-cogs",
            "area": "area.geojson",
            "rewrite": ["https://old=/mirror"],
        },
        "index": {"published": [{"files": "s3://bucket/x"}, {"files": "/data/y"}]},
    }
    assert batch.local_paths(config) == [
        "naip.archive: /data/naip",
        "sentinel2.area: area.geojson",
        "sentinel2.rewrite: /mirror",
        "index.published: /data/y",
    ]
