"""Every exception of botocore has one meaning, and the message of each setup error says what mends it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import boto3.exceptions  # noqa: F401 (its classes have parents in botocore)
import botocore.exceptions
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from kiln.errors import AccessError, AddressError, ConfigError, KilnError, SourceError, StorageError, TransientError
from kiln.io import storage
from kiln.io.aws.errors import KINDS, answer_error, error_of
from tests.support.server import FileServer

Write = Callable[..., None]


def subclasses(parent: type) -> Iterator[type]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def test_every_exception_of_botocore_has_a_kind():
    undecided = {c.__name__ for c in subclasses(BotoCoreError) if not {p.__name__ for p in c.__mro__} & set(KINDS)}
    assert undecided == set()


def test_every_kind_is_of_an_exception_that_botocore_has():
    assert set(KINDS) - {c.__name__ for c in subclasses(BotoCoreError)} == set()


@pytest.mark.parametrize(
    ("name", "values", "error", "words"),
    [
        ("IncompleteReadError", {"actual_bytes": 1, "expected_bytes": 2}, TransientError, "1 read"),
        ("ResponseStreamingError", {"error": "reset by peer"}, TransientError, "reset by peer"),
        ("ReadTimeoutError", {"endpoint_url": "https://s"}, TransientError, "timeout"),
        ("EndpointConnectionError", {"endpoint_url": "https://s"}, TransientError, "Try again later"),
        ("SSLError", {"endpoint_url": "u", "error": "CERTIFICATE_VERIFY_FAILED"}, ConfigError, "AWS_CA_BUNDLE"),
        ("SSLError", {"endpoint_url": "u", "error": "EOF occurred in violation of protocol"}, TransientError, "again"),
        ("ProxyConnectionError", {"proxy_url": "http://p", "error": "Tunnel connection failed: 407 no"}, ConfigError,
         "HTTPS_PROXY"),
        ("ProxyConnectionError", {"proxy_url": "http://p", "error": "refused"}, TransientError, "HTTPS_PROXY"),
        ("NoRegionError", {}, ConfigError, "AWS_DEFAULT_REGION"),
        ("UnknownRegionError", {"region_name": "x", "error_msg": "no"}, ConfigError, "AWS_DEFAULT_REGION"),
        ("UnauthorizedSSOTokenError", {}, ConfigError, "Run `aws sso login`"),
        ("LoginRefreshRequired", {}, ConfigError, "Run `aws login`"),
        ("RefreshWithMFAUnsupportedError", {}, ConfigError, "MFA"),
        ("MetadataRetrievalError", {"error_msg": "no"}, ConfigError, "role of the machine"),
        ("PaginationError", {"message": "no"}, StorageError, "Check the store"),
    ],
)  # fmt: skip
def test_exceptions_become_errors_with_what_to_do(monkeypatch, name, values, error, words):
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    result = error_of("s3://b/k", getattr(botocore.exceptions, name)(**values))
    assert type(result) is error
    assert str(result).startswith("s3://b/k: ")
    assert words in str(result)


def test_an_exception_of_a_bug_has_no_error():
    assert error_of("s3://b/k", botocore.exceptions.UnknownClientMethodError(method_name="x")) is None


@pytest.mark.parametrize(
    ("operation", "status", "code", "message", "error", "words"),
    [
        ("GetObject", 400, "ExpiredToken", "The provided token has expired.", ConfigError, "aws sso login"),
        ("GetObject", 403, "InvalidAccessKeyId", "", ConfigError, "Check the AWS credentials"),
        ("GetObject", 403, "SignatureDoesNotMatch", "", ConfigError, "Check the AWS credentials"),
        ("GetObject", 403, "SignatureDoesNotMatch", "Signature not yet current", ConfigError, "Set the clock"),
        ("GetObject", 403, "RequestTimeTooSkewed", "", ConfigError, "Set the clock"),
        ("GetObject", 407, "407", "Proxy Authentication Required", ConfigError, "HTTPS_PROXY"),
        ("HeadObject", 301, "301", "Moved Permanently", ConfigError, "AWS_REGION"),
        ("HeadObject", 400, "400", "Bad Request", ConfigError, "Check the AWS credentials"),
        ("AssumeRole", 403, "AccessDenied", "you may not", ConfigError, "role"),
        ("AssumeRole", 400, "Throttling", "slow", TransientError, "again"),
        ("GetObject", 403, "AccessDenied", "no", AccessError, "policy decides"),
        ("GetObject", 404, "NoSuchKey", "", SourceError, "does not exist"),
        ("GetObject", 412, "PreconditionFailed", "", SourceError, "changed"),
        ("GetObject", 503, "503", "", TransientError, "again"),
        ("PutObject", 400, "EntityTooLarge", "too large", StorageError, "too large"),
    ],
)  # fmt: skip
def test_answers_become_errors_with_what_to_do(operation, status, code, message, error, words):
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    result = answer_error("s3://b/k", ClientError(answer, operation))
    assert type(result) is error
    assert str(result).startswith("s3://b/k: ")
    assert words in str(result)


@pytest.fixture
def configure(aws, own_credentials, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, s3_endpoint: str) -> Write:
    """A function that writes ~/.aws/config, drops the keys of the environment, and sets variables."""
    aws(s3_endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))

    def write(text: str = "", **variables: str) -> None:
        (tmp_path / "config").write_text(text)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        own_credentials()

    return write


SSO = """[profile lab]
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
sso_account_id = 123456789012
sso_role_name = reader
"""
ROLE = """[profile lab]
role_arn = arn:aws:iam::123456789012:role/x
source_profile = gone
"""
PROCESS = "[profile lab]\ncredential_process = {}\n"
FAILS = f"{sys.executable} -c \"raise SystemExit('not today')\""


@pytest.mark.parametrize(
    ("config", "variables", "words"),
    [
        ("", {"AWS_PROFILE": "typo"}, ("(typo) could not be found", "Correct AWS_PROFILE")),
        ("", {"AWS_ACCESS_KEY_ID": "half"}, ("AWS_SECRET_ACCESS_KEY", "Set both")),
        ("", {}, ("expected AWS credentials, got none", "aws sso login`)")),
        (SSO, {"AWS_PROFILE": "lab"}, ("Run `aws sso login --profile lab`",)),
        (ROLE, {"AWS_PROFILE": "lab"}, ("gone", "aws configure list --profile lab")),
        (PROCESS.format(FAILS), {"AWS_PROFILE": "lab"}, ("not today", "credential_process")),
        (PROCESS.format("/nowhere/tool"), {"AWS_PROFILE": "lab"}, ("/nowhere/tool", "Correct ~/.aws/config")),
        (PROCESS.format("echo"), {"AWS_PROFILE": "lab"}, ("Correct ~/.aws/config",)),
        ("[profile lab\n", {"AWS_PROFILE": "lab"}, ("parse config file", "Correct ~/.aws/config")),
        ("", {"AWS_ENDPOINT_URL": "localhost:9000"}, ("Invalid endpoint: localhost:9000", "AWS_* variable")),
        ("[default]\ns3 =\n  addressing_style = x\n", {}, ("addressing style", "Correct ~/.aws/config")),
    ],
)
def test_settings_that_a_person_must_correct(configure: Write, config, variables, words):
    configure(config, **variables)
    for call in (storage.stat, storage.read_bytes, storage.listing):
        with pytest.raises(ConfigError) as e:
            call("s3://bucket-of-mine/a.bin")
        assert str(e.value).startswith("s3://bucket-of-mine")
        for word in words:
            assert word in str(e.value)


@pytest.mark.parametrize("bucket", ["", "a b", "bücket", "x" * 300])
def test_an_impossible_bucket_is_a_wrong_address(configure: Write, bucket):
    configure(AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    with pytest.raises(KilnError) as e:
        storage.stat(f"s3://{bucket}/a.bin")
    assert isinstance(e.value, AddressError)
    assert str(e.value).startswith(f"s3://{bucket}/a.bin: expected names of a bucket and a key")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let botocore retry without pauses."""
    monkeypatch.setattr("botocore.endpoint.time", SimpleNamespace(sleep=lambda s: None))


def error_body(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "error", "words"),
    [
        (400, "ExpiredToken", ConfigError, "aws sso login"),
        (403, "InvalidAccessKeyId", ConfigError, "Check the AWS credentials"),
        (403, "RequestTimeTooSkewed", ConfigError, "Set the clock"),
        (403, "AccessDenied", AccessError, "access denied (AccessDenied)"),
        (407, "407", ConfigError, "HTTPS_PROXY"),
    ],
)
def test_an_answer_to_head_is_asked_for_its_reason(
    aws, no_pauses, serve: Callable[..., FileServer], status, code, error, words
):
    """An answer to HEAD has no body, and so no reason: `400 Bad Request` may be an expired token."""
    aws(serve({}, status=status, body=error_body(code)).url)
    with pytest.raises(error) as e:
        storage.stat("s3://bucket/a.bin")
    assert type(e.value) is error
    assert words in str(e.value)


@pytest.fixture(params=["stat", "read_bytes"])
def call(request: pytest.FixtureRequest) -> Callable[[str], object]:
    return getattr(storage, request.param)


@pytest.mark.parametrize("uri", ["s3://b/a.bin", "http://s.invalid/b/a.bin"])
def test_a_proxy_that_wants_a_password_is_a_setting(aws, serve, monkeypatch, call, uri):
    monkeypatch.setenv("HTTP_PROXY", serve({}, status=407).url)
    aws("http://s.invalid")
    with pytest.raises(ConfigError, match=r"got 407 of a proxy\. Check HTTPS_PROXY"):
        call(uri)


@pytest.mark.parametrize("uri", ["s3://b/a.bin", "https://s.invalid/b/a.bin"])
def test_a_proxy_that_does_not_answer_is_named(aws, serve, no_pauses, monkeypatch, call, uri):
    server = serve({})
    server.stop()
    server.stop = lambda: None
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    aws("https://s.invalid")
    with pytest.raises(TransientError, match=r"Check HTTPS_PROXY"):
        call(uri)


@pytest.mark.parametrize("scheme", ["s3", "https"])
def test_a_missing_file_of_certificates_is_a_setting(aws, serve, no_pauses, monkeypatch, tmp_path, call, scheme):
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "nowhere.pem"))
    url = serve({}).url.replace("http", "https")
    aws(url)
    with pytest.raises(ConfigError, match="in AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE"):
        call("s3://b/a.bin" if scheme == "s3" else f"{url}/b/a.bin")
