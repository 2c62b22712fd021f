"""Databases on stores of other kinds: their settings, roles that rotate, and stores without conditional PUT."""

import boto3
import pytest

from kiln.errors import ConfigError, SourceError, StorageError
from kiln.explorer.build import builder
from kiln.explorer.build.products import Select
from kiln.explorer.database import ExplorerDatabase
from kiln.io import lance, storage
from tests.support.builds import build_database, product_vectors, read_vectors
from tests.support.s3_front import RotatingRole, S3Front, write_certificate


@pytest.fixture
def front(bucket, own_credentials, monkeypatch, s3_endpoint):
    """A function that starts a server in front of the simulated S3, and names it in the environment."""
    fronts = []
    for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)

    def start(refuse=lambda request: None, certificate=None, variable="AWS_ENDPOINT_URL_S3"):
        fronts.append(S3Front(s3_endpoint, refuse, certificate))
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        monkeypatch.setenv(variable, fronts[-1].url)
        own_credentials()
        return fronts[-1]

    yield start
    for each in fronts:
        each.stop()


def test_a_database_is_built_at_the_endpoint_that_botocore_resolves(front, bucket, two):
    server = front()
    build_database(f"{bucket}/explorer", *two)
    assert read_vectors(f"{bucket}/explorer") == product_vectors(*two)
    assert any("/explorer/chips.lance/data/" in path for _, path in server.requests)


def test_a_database_is_built_with_a_certificate_authority_of_ones_own(front, bucket, two, monkeypatch, tmp_path):
    authority, certificate = write_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", "")  # restored after the test
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    front(certificate=certificate)
    build_database(f"{bucket}/explorer", *two)
    assert read_vectors(f"{bucket}/explorer") == product_vectors(*two)


def test_a_database_is_built_while_the_credentials_of_a_role_rotate(front, bucket, two, monkeypatch):
    role = RotatingRole(uses=6, grace=5)
    role.lifetime_s = 30  # LanceDB renews credentials a minute before their end
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", role.url)
    try:
        front(role.refuse)
        build_database(f"{bucket}/explorer", *two)
        assert read_vectors(f"{bucket}/explorer") == product_vectors(*two)
        assert role.generation >= 5
        assert role.refused == 0
    finally:
        role.stop()


def test_a_database_is_built_through_a_proxy(front, bucket, two, monkeypatch):
    address = "http://store.invalid"

    def to_store(request):
        request.path = request.path.removeprefix(address)  # a request to a proxy has the whole address as its path
        request.headers.replace_header("Host", "127.0.0.1")  # moto takes other hosts for buckets

    for name in ("HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    proxy = front(to_store, variable="HTTP_PROXY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    storage.s3_client.cache_clear()
    build_database(f"{bucket}/explorer", *two)
    assert read_vectors(f"{bucket}/explorer") == product_vectors(*two)
    assert any(path.startswith(address) and "/explorer/chips.lance/data/" in path for _, path in proxy.requests)


PROFILE = "[profile lab]\naws_access_key_id = lab\naws_secret_access_key = secret\nregion = eu-west-1\n"


def test_keys_of_a_profile_are_handed_to_lancedb(aws, own_credentials, monkeypatch, tmp_path):
    aws("")
    (tmp_path / "config").write_text(PROFILE)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    own_credentials()
    options = lance.storage_options("s3://mine/explorer")
    assert (options["access_key_id"], options["secret_access_key"]) == ("lab", "secret")
    assert (options["region"], options["endpoint"]) == ("eu-west-1", "https://mine.s3.eu-west-1.amazonaws.com")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    own_credentials()
    options = lance.storage_options("s3://mine/explorer")
    assert (options["skip_signature"], options["request_payer"]) == ("true", "true")
    assert "access_key_id" not in options


def test_credentials_that_expired_are_a_setting_for_a_reader_too(front, bucket, two):
    refused = []
    front(lambda request: (400, "ExpiredToken") if refused else None)
    build_database(f"{bucket}/explorer", *two)
    refused.append(True)
    with pytest.raises(ConfigError, match="Check the AWS credentials: sign in again"):
        ExplorerDatabase(f"{bucket}/explorer")


def without_condition(request):
    return (501, "NotImplemented") if request.command == "PUT" and request.headers.get("If-None-Match") else None


def keys_of(bucket, endpoint):
    objects = boto3.client("s3", endpoint_url=endpoint).list_objects_v2(Bucket=bucket.removeprefix("s3://"))
    return [entry["Key"] for entry in objects.get("Contents", [])]


def test_a_store_without_conditional_put_is_refused_before_sources_are_read(front, bucket, s3_endpoint):
    front(without_condition)
    with pytest.raises(ConfigError, match=r"explorer: expected a store with conditional PUT .*Update the store") as e:
        builder.build(["s3://nowhere/record.json"], ["s3://nowhere/product"], f"{bucket}/explorer", Select())
    assert str(e.value).startswith(f"{bucket}/explorer: ")
    assert keys_of(bucket, s3_endpoint) == []


def test_a_store_that_ignores_the_condition_is_warned_of(front, bucket, s3_endpoint, caplog):
    class Ignoring:
        def __call__(self, request):
            del request.headers["If-None-Match"]

    front(Ignoring())
    storage.require_conditional_put(f"{bucket}/explorer")
    assert "the store ignores If-None-Match" in caplog.text
    assert keys_of(bucket, s3_endpoint) == []


def test_a_store_with_conditional_put_is_not_warned_of(bucket, s3_endpoint, caplog):
    storage.require_conditional_put(f"{bucket}/explorer")
    assert caplog.text == ""
    assert keys_of(bucket, s3_endpoint) == []


def test_a_denied_or_failing_check_is_no_verdict_on_the_store(front, bucket):
    front(lambda request: (403, "AccessDenied") if request.command == "PUT" else None)
    with pytest.raises(SourceError, match="access denied"):
        storage.require_conditional_put(f"{bucket}/explorer")


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("lance error: LanceError(IO): No space left on device (os error 28)", StorageError),
        ("Server returned non-2xx status code: 403 Forbidden: <Code>AccessDenied</Code>", StorageError),
        ("400 Bad Request: <Error><Code>ExpiredToken</Code></Error>", ConfigError),
    ],
)
def test_exceptions_of_lancedb_become_errors_by_their_message(message, error):
    assert type(lance.store_error("s3://b/explorer", RuntimeError(message))) is error
    assert lance.store_error("s3://b/explorer", RuntimeError("vector dimension 3")) is None
