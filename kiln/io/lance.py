"""How LanceDB reaches S3: with the settings that the rest of Kiln has.

LanceDB renews the credentials of a role of a machine, a container or a web identity by itself. Those of another source,
such as a sign-in or a profile, it does not know or cannot use: it gets the present ones.
"""

import os
import re

from kiln.errors import KilnError, StorageError, TransientError
from kiln.io.aws.session import is_aws
from kiln.io.aws.settings import DEFAULT_REGION
from kiln.io.fault import Fault, judge, setup_error
from kiln.io.storage import DISK_ERRNOS, s3_keys, s3_settings, split_s3

RENEWED_BY_LANCEDB = {"env", "iam-role", "container-role", "assume-role-with-web-identity"}  # botocore's names


def storage_options(uri: str) -> dict[str, str]:
    """Return LanceDB's options for a database on S3.

    LanceDB has no option for certificates. It reads SSL_CERT_FILE, which is set here.

    Raises:
        ConfigError: There are no credentials, or settings of AWS are wrong.
        TransientError: Credentials cannot be renewed for the moment.
    """
    bucket, _ = split_s3(uri)
    settings, keys = s3_settings(bucket), s3_keys(bucket)
    scheme, _, host = settings.endpoint.partition("://")
    options = {
        "allow_http": "true" if scheme == "http" else "false",
        "virtual_hosted_style_request": "true" if settings.virtual_hosts else "false",
        "skip_signature": "true" if settings.unsigned else "false",
        "request_payer": "true" if settings.requester_pays else "false",
    }
    if settings.region or not is_aws(settings.endpoint):  # else LanceDB asks for the bucket's region
        endpoint = f"{scheme}://{bucket}.{host}" if settings.virtual_hosts else settings.endpoint
        options |= {"endpoint": endpoint, "region": settings.region or DEFAULT_REGION}
    if settings.proxy:
        options["proxy_url"] = settings.proxy
    if settings.ca_bundle:
        os.environ["SSL_CERT_FILE"] = settings.ca_bundle
    if keys and keys.source not in RENEWED_BY_LANCEDB:
        options |= {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key}
        options |= {"session_token": keys.token} if keys.token else {}
    return options


def store_error(uri: str, error: Exception) -> KilnError | None:
    """Return the error for an exception of LanceDB that its store is the reason of, or None."""
    message = str(error)
    number = re.search(r"os error (\d+)", message)
    if number and int(number[1]) in DISK_ERRNOS:
        return StorageError(
            f"{uri}: cannot be written: {os.strerror(int(number[1]))}. Free some space, or choose another place for "
            "the database. What is there stays readable, and the next run goes on."
        )
    if setup := setup_error(uri, message):
        return setup
    match judge(message).fault:
        case Fault.TRANSPORT:
            return TransientError(f"{uri}: the database does not answer ({message}). Try again later.")
        case Fault.DENIED | Fault.DISK:
            return StorageError(f"{uri}: the database cannot be written or read ({message}).")
    return None
