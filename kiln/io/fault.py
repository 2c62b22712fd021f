"""What the message of a failed request means: who can act on it, and how.

libcurl, GDAL, botocore, requests and LanceDB report most failures in text alone. A message is never evidence against a
file: what is not in the table is `UNKNOWN`, and only a copy of the file can tell (`kiln/archives/failed_read.py`).
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from kiln.errors import ConfigError, KilnError, TransientError

TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that may differ on the next try


class Fault(StrEnum):
    """The kind of a failure."""

    TRANSPORT = "transport"  # a connection, or an overloaded server: another try may succeed
    SETUP = "setup"  # credentials, certificates, proxies, regions: each try fails until a person corrects them
    DENIED = "denied"  # no permission for this file
    GONE = "gone"  # the store has no such file
    REPLACED = "replaced"  # the file has another version than expected
    DISK = "disk"  # a full or unwritable disk of this machine
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """The judgement of a message.

    Attributes:
        fault: The kind of the failure.
        advice: What to do, a sentence; empty where the kind says it all.
    """

    fault: Fault
    advice: str = ""


CREDENTIALS = "Check the AWS credentials: sign in again (`aws sso login`), or set AWS_PROFILE or AWS_ACCESS_KEY_ID."
CERTIFICATES = "Name the file with the certificate authority in AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE, or correct it."
PROXY = "Check HTTPS_PROXY, HTTP_PROXY and NO_PROXY, with the name and password that the proxy asks for."
REGION = "Set AWS_REGION to the region of the bucket."
CLOCK = "Set the clock of this machine."
ADDRESS = "Correct the address, or AWS_ENDPOINT_URL."

# The first pattern that is in the message decides. Causes that a person must correct come before the broken connection
# that they lead to.
PATTERNS: tuple[tuple[Fault, str, str], ...] = (
    (Fault.DISK, "", r"No space left on device|os error 28\b|Disk quota exceeded|Read-only file system"),
    (
        Fault.SETUP,
        CERTIFICATES,
        r"certificate problem|CERTIFICATE_VERIFY_FAILED|certificate verify failed|no alternative certificate subject"
        r"|does not match target host|error setting certificate|invalid peer certificate|UnknownIssuer"
        r"|SSL peer certificate|unable to get local issuer|self[- ]signed certificate|invalid path: .*\.(?:pem|crt)"
        r"|SSL validation failed for \S+ \[Errno (?:2|13|21)\]"
        r"|suitable TLS CA certificate bundle|NO_CERTIFICATE_OR_CRL|no certificate or crl",
    ),
    (
        Fault.SETUP,
        PROXY,
        r"Proxy Authentication Required|code 407 from proxy|CONNECT tunnel failed, response 40[37]|code 403 from proxy"
        r"|Tunnel connection failed: 40[37]|response[_ ]code[=:] ?407|error code ?: 407|Unsupported proxy",
    ),
    (
        Fault.SETUP,
        CLOCK,
        r"RequestTimeTooSkewed|difference between the request time and the current time"
        r"|Signature (?:expired|not yet current)",
    ),
    (
        Fault.SETUP,
        CREDENTIALS,
        r"ExpiredToken|(?:token|credentials?|session) (?:included in the request )?(?:is|has|have|associated .* has) "
        r"(?:been )?expired|token .* expired|TokenRefreshRequired|InvalidToken|InvalidAccessKeyId|InvalidClientTokenId"
        r"|UnrecognizedClientException|SignatureDoesNotMatch|signature we calculated does not match"
        r"|Access Key Id you provided does not exist|Unable to locate credentials|NoCredentials|CredentialsNotLoaded"
        r"|No valid AWS credentials|InvalidCredentials|Partial credentials|config profile .* could not be found"
        r"|Error when retrieving (?:token|credentials)|Error loading SSO Token|not authorized to perform: sts:"
        r"|Failed to get AWS credentials|credential provider was not enabled|Refreshing temporary credentials failed"
        r"|Missing Authentication Token|CredentialRetrievalError",
    ),
    (
        Fault.SETUP,
        REGION,
        r"PermanentRedirect|must be addressed using the specified endpoint|AuthorizationHeaderMalformed"
        r"|You must specify a region|Missing region|region .* is wrong; expecting|An error occurred \(301\)",
    ),
    (
        Fault.SETUP,
        ADDRESS,
        r"Invalid endpoint|Protocol \S+ not supported|Unsupported protocol|URL (?:using bad|rejected)"
        r"|relative URL without|Invalid ?[Bb]ucket ?[Nn]ame|not a valid bucket",
    ),
    (Fault.REPLACED, "", r"PreconditionFailed|[Pp]re-?conditions? you specified did not hold|\b412 Precondition"),
    (
        Fault.GONE,
        "",
        r"NoSuchKey|NoSuchBucket|specified (?:key|bucket) does not exist|\b(?:404|410) (?:Not Found|Gone)"
        r"|Object at location .* not found|(?:response[_ ]code|error code ?)[ =:]+(?:404|410)\b"
        r"|An error occurred \(404\)",
    ),
    (
        Fault.TRANSPORT,
        "",
        r"(?:response[_ ]code|error code ?)[ =:]+(?:0|408|425|429|5\d\d)\b"
        r"|status(?: code)?:? (?:408|425|429|50[0234])\b"
        r"|An error occurred \((?:408|425|429|50[0234]|SlowDown|InternalError|ServiceUnavailable|RequestTimeout"
        r"|Throttling\w*|RequestLimitExceeded)\)|code 50[0234] from proxy|tunnel failed, response 50[0234]"
        r"|Tunnel connection failed: 50[0234]",
    ),
    (
        Fault.TRANSPORT,
        "",
        r"SlowDown|reduce your request rate|Please try again|Service Unavailable|Too Many Requests|Gateway Time-?out"
        r"|RequestTimeout|not read from or written to within|Bad Gateway|Internal Server Error",
    ),
    (
        Fault.TRANSPORT,
        "",
        r"(?i:timed? ?out\b|timeout (?:was reached|on endpoint)|operation too slow|could(?: not|n't) resolve"
        r"|name resolution|failed to lookup address|name or service not known|nodename nor servname|getaddrinfo"
        r"|connection refused|connection reset|connection (?:was )?closed|connection (?:aborted|broken)|broken pipe"
        r"|network is unreachable|no route to host|network is down|failed to connect|could(?: not|n't) connect"
        r"|max retries exceeded|remote end closed|empty reply from server|transfer closed|closed before message"
        r"|(?:send|recv) failure|failed sending data|failure when receiving|incomplete ?(?:read|message)|partial file"
        r"|error sending request|error decoding response body|body error|unexpected eof|EOF occurred in violation"
        r"|SSL_ERROR_(?:SYSCALL|ZERO)|SSL_connect|SSL_read|SSL connect error|SSL routines|schannel|TLS handshake"
        r"|HTTP/?2 (?:framing|stream)|HTTP2 framing|stream \d+ was (?:not closed cleanly|reset)|GOAWAY|protocol error"
        r"|chunked-encoding|chunk (?:hex|too)|content encoding|content unencoding|bytes remaining to read"
        r"|error after \d+ retries|connect(?:ion)? error|Temporary failure)",
    ),
    (
        Fault.DENIED,
        "",
        r"AccessDenied|Access Denied|AllAccessDisabled|\b40[13] (?:Forbidden|Unauthorized)"
        r"|(?:response[_ ]code|error code ?)[ =:]+40[13]\b|An error occurred \(40[13]\)|not authorized to perform",
    ),
)
_COMPILED = tuple((Verdict(fault, advice), re.compile(pattern)) for fault, advice, pattern in PATTERNS)
_UNKNOWN = Verdict(Fault.UNKNOWN)


def judge(message: str) -> Verdict:
    """Return what a message means.

    Args:
        message: The text of an error and of its causes, without the file's name: a name may hold any word.

    Returns:
        The kind of the failure with what to do. It is never a fault of the file.
    """
    return next((verdict for verdict, pattern in _COMPILED if pattern.search(message)), _UNKNOWN)


def setup_error(where: str, message: str) -> ConfigError | None:
    """Return the error for a message of something that a person must correct, or None for any other message.

    Args:
        where: What the request was about; the error begins with it.
        message: The client's message, with its cause.
    """
    verdict = judge(message)
    if verdict.fault is not Fault.SETUP:
        return None
    return ConfigError(f"{where}: expected an answer, got `{message}`. {verdict.advice}")


def connection_error(where: str, message: str) -> KilnError:
    """Return the error for a connection that failed: one that a person must correct, else one for another try."""
    hint = f" {PROXY}" if "proxy" in message.lower() else ""
    return setup_error(where, message) or TransientError(
        f"{where}: the connection broke or failed ({message}). Try again later.{hint}"
    )


def proxy_error(where: str) -> ConfigError:
    """Return the error for an answer 407, which no store gives: a proxy asks for a name and a password."""
    return ConfigError(f"{where}: expected an answer of the server, got 407 of a proxy. {PROXY}")
