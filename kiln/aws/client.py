"""Clients of AWS services, and AWS's errors in words that a person can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kiln.archives.registry import archives
from kiln.errors import AccountError, ConfigError, KilnError, TransientError
from kiln.io.aws.errors import TRANSIENT_CODES, answer_setup_error, error_of, status_of
from kiln.io.fault import CREDENTIALS, TRANSIENT_STATUS

INVALID_CREDENTIALS = {"AuthFailure", "RequestExpired"}  # codes of EC2; those of other services are judged by all
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}


@contextmanager
def aws_errors(subject: str) -> Iterator[None]:
    """Turn botocore's errors into Kiln's.

    Args:
        subject: The resource that the requests are about; the messages begin with it.

    Raises:
        ConfigError: Region or credentials are missing or invalid, or a parameter is.
        AccountError: AWS denies or cannot do the request.
        TransientError: AWS throttles, or the connection broke.
    """
    from botocore.exceptions import BotoCoreError, ClientError, NoRegionError

    try:
        yield
    except NoRegionError as e:
        regions = ", ".join(f"{a.buckets[0].region} for {a.title}" for a in archives().values() if a.buckets)
        raise ConfigError(
            f"{subject}: expected an AWS region, got none. Set AWS_DEFAULT_REGION to the archive's region, where "
            f"reading is free: {regions}."
        ) from e
    except ClientError as e:
        raise _answer_error(subject, e) from e
    except BotoCoreError as e:
        if (error := error_of(subject, e)) is None:
            raise
        raise error from e


def _answer_error(subject: str, error: Any) -> KilnError:
    """Return the error for an answer of AWS."""
    code, message = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    if code in TRANSIENT_CODES or status_of(error) in TRANSIENT_STATUS:
        return TransientError(f"{subject}: AWS is busy ({code}). Try again later.")
    if code in INVALID_CREDENTIALS:
        return ConfigError(f"{subject}: AWS does not accept these credentials ({code}). {CREDENTIALS}")
    if setup := answer_setup_error(subject, error):
        return setup
    return AccountError(f"{subject}: {'access denied. ' if code in DENIED else ''}{message or code}")


def client(service: str, region: str | None = None) -> Any:
    """Return a boto3 client that retries as AWS recommends.

    Raises:
        ConfigError: No region is set.
    """
    import boto3
    from botocore.config import Config

    with aws_errors(service):
        return boto3.client(service, region_name=region, config=Config(retries={"mode": "standard", "max_attempts": 8}))
