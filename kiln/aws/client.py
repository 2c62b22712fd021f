"""Clients of AWS services, and AWS's errors in words that a person can act on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kiln.archives.registry import archives
from kiln.errors import AccountError, ConfigError, TransientError

INVALID_CREDENTIALS = {
    *("InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "SignatureDoesNotMatch"),
    *("AuthFailure", "ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken"),
}
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403"}
THROTTLED = {
    *("Throttling", "ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded", "ServiceUnavailable"),
}


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
    from botocore import exceptions as aws

    try:
        yield
    except aws.NoRegionError as e:
        regions = ", ".join(f"{a.buckets[0].region} for {a.title}" for a in archives().values() if a.buckets)
        raise ConfigError(
            f"{subject}: expected an AWS region, got none. Set AWS_DEFAULT_REGION to the archive's region, where "
            f"reading is free: {regions}."
        ) from e
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound, aws.TokenRetrievalError) as e:
        raise ConfigError(
            f"{subject}: expected AWS credentials, got none ({e}). Set AWS_PROFILE or AWS_ACCESS_KEY_ID."
        ) from e
    except aws.ClientError as e:
        code, message = e.response["Error"].get("Code", ""), e.response["Error"].get("Message", "")
        if code in INVALID_CREDENTIALS:
            raise ConfigError(f"{subject}: AWS does not accept these credentials ({code}). Check or renew them.") from e
        if code in DENIED:
            raise AccountError(f"{subject}: access denied. {message}") from e
        if code in THROTTLED:
            raise TransientError(f"{subject}: AWS is busy ({code}). Try again later.") from e
        raise AccountError(f"{subject}: {message or code}") from e
    except aws.ParamValidationError as e:
        raise ConfigError(f"{subject}: {e}") from e
    except (aws.ConnectionError, aws.HTTPClientError) as e:
        raise TransientError(f"{subject}: no connection to AWS ({e}). Check the network, and try again.") from e


def client(service: str, region: str | None = None) -> Any:
    """Return a boto3 client that retries as AWS recommends.

    Raises:
        ConfigError: No region is set.
    """
    import boto3
    from botocore.config import Config

    with aws_errors(service):
        return boto3.client(service, region_name=region, config=Config(retries={"mode": "standard", "max_attempts": 8}))
