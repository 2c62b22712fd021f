"""What a submission says before it is made."""

from dataclasses import replace

from kiln.aws.array_jobs import EmbedRule
from kiln.aws.batch import JobResources
from kiln.aws.submit import Selection, describe
from kiln.formats.plan_file import ShardPlan

RULE = EmbedRule(
    dataset="naip", run="tiny", command=(), output="", plan="", partitions=(), folder="", weights="",
    resources=JobResources(2, 8192, 0), chips_per_second=None, price_per_hour=0.5,
)  # fmt: skip
SHARDS = [ShardPlan("naip", "nd-2019", f"s{n}", ("u",), 256, 45_000, 2_000_000_000, "s3://naip") for n in range(2)]


def test_chips_bytes_hours_and_price_are_stated() -> None:
    text = describe(replace(RULE, chips_per_second=25), Selection(SHARDS, 0), missing_only=True)
    assert "naip: 2 shards as an array of 2; each 2 vCPU, 8,192 MB" in text
    assert "at most 90,000 chips, 4.0 GB to read, 1.00 hours of encoders at 25 chips/s, compute 0.50" in text, (
        "90 000 chips at 25/s are an hour"
    )


def test_without_a_rate_hours_and_price_are_unknown() -> None:
    text = describe(RULE, Selection(SHARDS, 3), missing_only=False)
    assert "4.0 GB to read, hours and price unknown: run kiln tune on a machine of the queue" in text
    assert "3 of them are finished: --missing leaves them out" in text
