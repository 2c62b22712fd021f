"""Resources of jobs on AWS Batch."""

import pytest
from snakemake_executor_plugin_aws_batch.constant import VALID_RESOURCES_MAPPING

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
