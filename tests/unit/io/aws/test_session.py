"""Whose credentials a bucket is read with, and who pays."""

import boto3
import pytest

from kiln.errors import AccessError, ConfigError
from kiln.io import buckets, storage
from kiln.io.aws import session
from tests.support.downloads import DATA


@pytest.fixture
def public(bucket, own_credentials, monkeypatch):
    """The `s3://` URI of an object of a public bucket, whose readers have no credentials."""
    name = bucket.removeprefix("s3://")
    s3 = boto3.client("s3")
    s3.put_bucket_acl(Bucket=name, ACL="public-read")
    s3.put_object(Bucket=name, Key="a.bin", Body=DATA, ACL="public-read")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    return f"{bucket}/a.bin"


@pytest.fixture
def known(public, monkeypatch):
    """Register the public bucket as an archive's, as `import kiln` does for WorldCover."""
    name, _ = storage.split_s3(public)
    monkeypatch.setitem(buckets._BUCKETS, name, buckets.Bucket(name, "us-east-1"))
    return public


SSO = "[profile lab]\nsso_start_url = https://a.invalid/start\nsso_region = us-east-1\nsso_account_id = 1\n"
BAD_PROFILES = {
    "unknown": ("", {"AWS_PROFILE": "typo"}),
    "signed out": (f"{SSO}sso_role_name = reader\n", {"AWS_PROFILE": "lab"}),
    "half of a sign-in": (SSO, {"AWS_PROFILE": "lab"}),
    "not a config file": ("[profile lab\n", {"AWS_PROFILE": "lab"}),
    "half of a key pair": ("", {"AWS_ACCESS_KEY_ID": "half"}),
    "fails": ("[profile lab]\ncredential_process = false\n", {"AWS_PROFILE": "lab"}),
}


@pytest.mark.parametrize("profile", BAD_PROFILES)
def test_a_public_archive_is_read_whatever_the_profile(known, own_credentials, monkeypatch, tmp_path, profile):
    text, variables = BAD_PROFILES[profile]
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    own_credentials()
    assert storage.read_bytes(known) == DATA
    with pytest.raises(ConfigError):
        storage.read_bytes("s3://mine/a.bin")


def test_requests_are_unsigned_where_a_variable_says_so(public, own_credentials, monkeypatch):
    own_credentials()
    with pytest.raises(ConfigError, match="expected AWS credentials, got none"):
        storage.read_bytes(public)
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    own_credentials()
    assert storage.read_bytes(public) == DATA


@pytest.mark.parametrize(
    ("value", "unsigned"), [("YES", True), ("true", True), ("1", True), ("no", False), ("FALSE", False), ("", False)]
)
def test_a_switch_has_the_values_of_gdal(monkeypatch, value, unsigned):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", value)
    assert session.is_unsigned("private") is unsigned
    assert session.is_unsigned("esa-worldcover-s2")


def test_the_requester_pays_where_the_bucket_or_a_variable_says_so(aws, serve, monkeypatch):
    server = serve({"/naip-analytic/a": DATA, "/mine/a": DATA, "/esa-worldcover-s2/a": DATA})
    aws(server.url)
    for variable, payers in ((None, ["requester", None, None]), ("requester", ["requester", "requester", None])):
        if variable:
            monkeypatch.setenv("AWS_REQUEST_PAYER", variable)
        server.payers.clear()
        for bucket in ("naip-analytic", "mine", "esa-worldcover-s2"):
            storage.read_bytes(f"s3://{bucket}/a")
        assert server.payers == payers


def test_an_unsigned_request_that_is_denied_names_the_variable(aws, serve, monkeypatch):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    aws(serve({}, status=403, body=b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>").url)
    with pytest.raises(AccessError, match="AWS_NO_SIGN_REQUEST is set"):
        storage.read_bytes("s3://naip-analytic/a")
