"""What tests of S3 share: the AWS settings of this process, read anew."""

import boto3

from kiln.io import storage
from kiln.io.aws.session import forget_sessions


def forget_credentials() -> None:
    """Drop all clients, sessions and credentials of this process, after a change of its AWS_* variables.

    A test that changes credentials or the profile calls it after the change, and in the end. New sessions take time, so
    other tests only drop clients, which have endpoints and regions.
    """
    boto3.DEFAULT_SESSION = None
    forget_sessions()
    storage.s3_client.cache_clear()
