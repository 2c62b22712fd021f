"""What a store must have is checked before the first job."""

from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from tests.support.s3_front import S3Front
from tests.workflow.workflow import fresh

KEYS = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "kiln-no-condition"
STORE = ["--default-storage-provider", "s3", "--default-storage-prefix", f"s3://{BUCKET}/run"]


@pytest.fixture
def old_store(s3_endpoint: str) -> Iterator[str]:
    """The URL of a store without conditional PUT, with an empty bucket."""
    names = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=s3_endpoint, **names).create_bucket(Bucket=BUCKET)

    def refuse(request: object) -> tuple[int, str] | None:
        return (501, "NotImplemented") if "If-None-Match" in request.headers else None

    front = S3Front(s3_endpoint, refuse)
    yield front.url
    front.stop()


@pytest.mark.parametrize(
    ("targets", "endpoint", "words"),
    [
        ([], lambda url: [], "expected a store with conditional PUT"),
        (["plan"], lambda url: [], ""),
        (["plan"], lambda url: ["--storage-s3-endpoint-url", url], ""),
        (["plan"], lambda url: ["--storage-s3-endpoint-url", "http://other:9000"], "Set AWS_ENDPOINT_URL_S3=http://other"),
    ],
)  # fmt: skip
def test_a_store_is_checked_before_the_first_job(
    old_store: str, tmp_path: Path, targets: list[str], endpoint: Callable[[str], list[str]], words: str
) -> None:
    run = fresh(tmp_path / "run")
    options = ["--cores", "1", *targets, *STORE, *endpoint(old_store)]
    output = run.snakemake(*options, check=not words, AWS_ENDPOINT_URL_S3=old_store, **KEYS)
    if words:
        assert words in output
        assert "localrule" not in output
        assert "rule plan_worldcover" not in output
