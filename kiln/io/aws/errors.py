"""botocore's exceptions as Kiln's errors.

Every class of botocore has a kind, by its own name or that of a parent. Classes that only a bug can raise have the kind
`BUG`, and pass through with their traceback. botocore is imported by who makes requests, not here: names are compared.
"""

import os
from dataclasses import dataclass
from typing import Any

from kiln.errors import AccessError, AddressError, ConfigError, KilnError, SourceError, StorageError, TransientError
from kiln.io.fault import CREDENTIALS, TRANSIENT_STATUS, connection_error, proxy_error, setup_error


@dataclass(frozen=True)
class Kind:
    """A kind of exceptions.

    Attributes:
        error: Kiln's error; None for one that its message decides.
        expected: What Kiln expected.
        advice: What to do, in sentences. `{profile}` stands for the option that names the profile in use.
    """

    error: type[KilnError] | None
    expected: str = ""
    advice: str = ""


SSO = Kind(ConfigError, "a valid sign-in with AWS IAM Identity Center (SSO)", "Run `aws sso login{profile}`.")
LOGIN = Kind(ConfigError, "a valid sign-in with AWS", "Run `aws login{profile}`.")
PROFILE = Kind(
    ConfigError,
    "an AWS profile of the config file",
    "Correct AWS_PROFILE; `aws configure list-profiles` prints their names.",
)
KEY_PAIR = Kind(
    ConfigError,
    "a whole pair of AWS keys",
    "Set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or both in the profile, or neither.",
)
NONE = Kind(
    ConfigError,
    "AWS credentials",
    "Set AWS_PROFILE or AWS_ACCESS_KEY_ID, or sign in (`aws sso login{profile}`); on a machine of AWS, give it a role.",
)
PROVIDER = Kind(
    ConfigError,
    "AWS credentials from their source",
    "Run `aws sts get-caller-identity{profile}`, which needs them too, and correct the source: the profile's "
    "credential_process, or the role of the machine or container.",
)
MFA = Kind(
    ConfigError,
    "AWS credentials that can be renewed without a person",
    "Take a profile whose role needs no MFA token, or sign in again and run again.",
)
CONFIG_FILE = Kind(
    ConfigError,
    "AWS settings that botocore accepts",
    "Correct ~/.aws/config, or the file that AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE names, or the AWS_* "
    "variable; `aws configure list{profile}` shows where each setting comes from.",
)
REGION = Kind(ConfigError, "an AWS region", "Set AWS_DEFAULT_REGION, or `region` of the profile, to a region of AWS.")
ADDRESS = Kind(AddressError, "names of a bucket and a key that S3 allows", "Correct the address.")
BY_MESSAGE = Kind(None)  # connections: certificates and proxies need a person, all else another try
TRANSIENT = Kind(TransientError)
ANSWER = Kind(StorageError, "an answer of the store that follows S3's protocol", "Check the store.")
BUG: None = None

KINDS: dict[str, Kind | None] = {
    **dict.fromkeys(("SSOError", "TokenRetrievalError", "NoAuthTokenError"), SSO),
    "LoginError": LOGIN,
    "ProfileNotFound": PROFILE,
    "PartialCredentialsError": KEY_PAIR,
    "NoCredentialsError": NONE,
    **dict.fromkeys(("CredentialRetrievalError", "MetadataRetrievalError"), PROVIDER),
    "RefreshWithMFAUnsupportedError": MFA,
    **dict.fromkeys(
        (
            *("ConfigNotFound", "ConfigParseError", "InvalidConfigError", "UnknownCredentialError"),
            *("UnknownTokenProviderError", "MissingDependencyException", "InvalidDefaultsMode"),
            *("InvalidRetryConfigurationError", "InvalidProxiesConfigError", "InvalidChecksumConfigError"),
            *("InvalidIMDSEndpointError", "InvalidIMDSEndpointModeError", "InvalidEndpointConfigurationError"),
            *("InvalidEndpointDiscoveryConfigurationError", "InvalidS3AddressingStyleError"),
            *("InvalidS3UsEast1RegionalEndpointConfigError", "InvalidSTSRegionalEndpointsConfigError"),
            *("UnknownSignatureVersionError", "UnsupportedSignatureVersionError", "UnknownServiceStyle"),
            *("UnsupportedS3ConfigurationError", "UnsupportedS3ControlConfigurationError", "EndpointProviderError"),
            "UnsupportedS3AccesspointConfigurationError",
        ),
        CONFIG_FILE,
    ),
    **dict.fromkeys(
        ("BaseEndpointResolverError", "InvalidRegionError", "UnknownRegionError", "ServiceNotInRegionError"), REGION
    ),
    **dict.fromkeys(
        (
            *("ParamValidationError", "ValidationError", "InvalidDNSNameError", "InvalidHostLabelError"),
            *("UnsupportedS3ArnError", "UnsupportedS3ControlArnError", "UnsupportedOutpostResourceError"),
        ),
        ADDRESS,
    ),
    **dict.fromkeys(("ConnectionError", "HTTPClientError"), BY_MESSAGE),
    **dict.fromkeys(
        ("IncompleteReadError", "ChecksumError", "FlexibleChecksumError", "CapacityNotAvailableError"), TRANSIENT
    ),
    **dict.fromkeys(("PaginationError", "WaiterError", "EndpointDiscoveryException"), ANSWER),
    **dict.fromkeys(
        (
            *("DataNotFoundError", "MissingParametersError", "OperationNotPageableError", "UnknownClientMethodError"),
            *("InvalidExpressionError", "UnseekableStreamError", "MD5UnavailableError", "StubResponseError"),
            *("WaiterConfigError", "UnsupportedServiceProtocolsError", "AwsChunkedWrapperError"),
            "ApiVersionNotFoundError",
        ),
        BUG,
    ),
}
TRANSIENT_CODES = {
    *("SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "RequestLimitExceeded", "500", "503"),
    *("Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException"),
}
CREDENTIAL_OPERATIONS = {  # of STS and of sign-ins: botocore requests them for credentials
    *("AssumeRole", "AssumeRoleWithWebIdentity", "AssumeRoleWithSAML", "GetSessionToken"),
    *("GetRoleCredentials", "CreateToken", "CreateOAuth2Token"),
}

ROLE = (
    "Check the role and the source of credentials that the profile names, and that the role trusts them; or sign in "
    "again (`aws sso login{profile}`)."
)


def error_of(where: str, error: Exception) -> KilnError | None:
    """Return Kiln's error for a BotoCoreError.

    Args:
        where: What the request was about; the message begins with it.
        error: The exception.

    Returns:
        The error; None for an exception that only a bug can raise.
    """
    names = [c.__name__ for c in type(error).__mro__]
    kind = next((KINDS[name] for name in names if name in KINDS), BUG)
    if kind is BUG:
        return None
    if kind is BY_MESSAGE:
        inner = getattr(error, "kwargs", {}).get("error")
        return connection_error(where, str(error) if inner is None or str(inner) in str(error) else f"{error}: {inner}")
    if kind is TRANSIENT:
        return TransientError(f"{where}: the connection broke or failed ({error}). Try again later.")
    got = "none" if kind is NONE else f"`{error}`"
    return (kind.error or StorageError)(f"{where}: expected {kind.expected}, got {got}. {_with_profile(kind.advice)}")


def setting_error(where: str, error: Exception) -> ConfigError:
    """Return the error for an exception that is not botocore's own, while it reads settings and credentials."""
    return ConfigError(f"{where}: expected {CONFIG_FILE.expected}, got `{error}`. {_with_profile(CONFIG_FILE.advice)}")


def answer_error(where: str, error: Any, hint: str = "the bucket's policy decides") -> KilnError:
    """Return Kiln's error for a ClientError: an answer of S3, or of a service that credentials come from.

    Args:
        where: What the request was about; the message begins with it.
        error: The ClientError.
        hint: What may have denied access, a clause.
    """
    code, status = str(error.response.get("Error", {}).get("Code", "")), status_of(error)
    if code in TRANSIENT_CODES or status in TRANSIENT_STATUS:
        return TransientError(f"{where}: the store answers {code or status}. Try again later.")
    if setup := answer_setup_error(where, error):
        return setup
    if status == 412:
        return SourceError(f"{where}: changed while it was read. Run again.")
    if status == 404:
        return SourceError(f"{where}: does not exist")
    if status in (401, 403):
        return AccessError(f"{where}: access denied ({code}). Check the credentials; {hint}.")
    return StorageError(f"{where}: {error}")


def answer_setup_error(where: str, error: Any) -> ConfigError | None:
    """Return the error for a ClientError that a person must correct: credentials, region, clock, proxy; else None."""
    status = status_of(error)
    if status == 407:
        return proxy_error(where)
    if error.operation_name in CREDENTIAL_OPERATIONS:
        return ConfigError(f"{where}: expected AWS credentials, got `{error}`. {_with_profile(ROLE)}")
    if status == 400 and error.operation_name.startswith("Head"):  # an answer without a body, and so without a reason
        return ConfigError(f"{where}: expected AWS credentials that are valid, got `{error}`. {CREDENTIALS}")
    return setup_error(where, str(error))


def status_of(error: Any) -> int:
    """Return the HTTP status of a ClientError, 0 for none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _with_profile(advice: str) -> str:
    profile = os.environ.get("AWS_PROFILE") or os.environ.get("AWS_DEFAULT_PROFILE")
    return advice.replace("{profile}", f" --profile {profile}" if profile else "")
