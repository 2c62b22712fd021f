"""One answer to where S3 is, for Kiln's own requests and for GDAL."""

import boto3
import pytest
import rasterio
from rasterio.windows import Window

from kiln.io import gdal, storage
from kiln.io.aws.session import Keys
from tests.support.naip_scenes import scene_pixels, write_scene
from tests.support.s3_front import RotatingRole, S3Front, write_certificate

ROWS = 16  # of a block
SERVICES = "[profile lab]\nservices = store\n[services store]\ns3 =\n  endpoint_url = {0}\n"
ENDPOINTS = {
    "AWS_ENDPOINT_URL": ("", {"AWS_ENDPOINT_URL": "{0}"}),
    "AWS_ENDPOINT_URL_S3": ("", {"AWS_ENDPOINT_URL_S3": "{0}", "AWS_ENDPOINT_URL": "http://other.invalid"}),
    "endpoint_url of the profile": ("[profile lab]\nendpoint_url = {0}\n", {"AWS_PROFILE": "lab"}),
    "services of the profile": (SERVICES, {"AWS_PROFILE": "lab"}),
}


@pytest.fixture
def configure(aws, own_credentials, monkeypatch, tmp_path):
    """A function that writes ~/.aws/config and sets variables. No endpoint is set before."""
    aws("")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def write(text="", **variables):
        (tmp_path / "config").write_text(text)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        for name, value in variables.items():
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        own_credentials()

    return write


def read_pixels(uri):
    with gdal.environment(uri), rasterio.open(uri) as raster:
        return raster.read()


@pytest.fixture
def scene(bucket, tmp_path):
    """The `s3://` URI of a raster, and its pixels."""
    pixels = scene_pixels()
    path = write_scene(tmp_path, "a.tif", pixels)
    boto3.client("s3").upload_file(str(path), bucket.removeprefix("s3://"), "a.tif")
    return f"{bucket}/a.tif", pixels


@pytest.mark.parametrize("way", ENDPOINTS)
def test_gdal_reads_from_the_store_that_botocore_resolves(scene, configure, s3_endpoint, way):
    text, variables = ENDPOINTS[way]
    uri, pixels = scene
    configure(text.format(s3_endpoint), **{k: v.format(s3_endpoint) for k, v in variables.items()})
    assert storage.stat(uri).size > 0
    assert (read_pixels(uri) == pixels).all()


@pytest.mark.parametrize(
    ("config", "variables", "bucket", "endpoint", "virtual", "region"),
    [
        ("", {}, "mine", "https://s3.amazonaws.com", True, "us-east-1"),
        ("", {}, "dots.in.name", "https://s3.amazonaws.com", False, "us-east-1"),
        ("", {}, "naip-analytic", "https://s3.us-west-2.amazonaws.com", True, "us-west-2"),
        ("", {"AWS_DEFAULT_REGION": "cn-north-1"}, "mine", "https://s3.cn-north-1.amazonaws.com.cn", True,
         "cn-north-1"),
        ("[default]\nregion = eu-west-1\n", {"AWS_DEFAULT_REGION": None}, "mine",
         "https://s3.eu-west-1.amazonaws.com", True, "eu-west-1"),
        ("", {"AWS_DEFAULT_REGION": None}, "mine", "https://s3.amazonaws.com", True, ""),
        ("", {"AWS_USE_DUALSTACK_ENDPOINT": "true"}, "mine", "https://s3.dualstack.us-east-1.amazonaws.com", True,
         "us-east-1"),
        ("[default]\ns3 =\n  addressing_style = path\n", {}, "mine", "https://s3.amazonaws.com", False,
         "us-east-1"),
        ("", {"AWS_ENDPOINT_URL": "http://store:9000/"}, "mine", "http://store:9000", False, "us-east-1"),
        ("", {"AWS_ENDPOINT_URL": "http://store/s3"}, "mine", "http://store/s3", False, "us-east-1"),
        ("[default]\ns3 =\n  addressing_style = virtual\n", {"AWS_ENDPOINT_URL": "http://store:9000"}, "mine",
         "http://store:9000", True, "us-east-1"),
    ],
)  # fmt: skip
def test_endpoint_style_and_region_are_those_of_botocore(
    configure, config, variables, bucket, endpoint, virtual, region
):
    configure(config, **variables)
    settings = storage.s3_settings(bucket)
    assert (settings.endpoint, settings.virtual_hosts, settings.region) == (endpoint, virtual, region)
    options = gdal.environment(f"s3://{bucket}/a.tif").options
    assert options["AWS_S3_ENDPOINT"] == endpoint.partition("://")[2]
    assert options["AWS_HTTPS"] == ("YES" if endpoint.startswith("https") else "NO")
    assert options["AWS_VIRTUAL_HOSTING"] == ("TRUE" if virtual else "FALSE")
    assert options["AWS_REGION"] == (region or "us-east-1")


CERTIFICATES = {
    "AWS_CA_BUNDLE": ("", "AWS_CA_BUNDLE"),
    "ca_bundle of the profile": ("[default]\nca_bundle = {0}\n", ""),
    "REQUESTS_CA_BUNDLE": ("", "REQUESTS_CA_BUNDLE"),
}


@pytest.mark.usefixtures("gdal_without_retries")
@pytest.mark.parametrize("way", CERTIFICATES)
def test_one_certificate_authority_counts_for_all(scene, configure, s3_endpoint, tmp_path, way):
    uri, pixels = scene
    authority, certificate = write_certificate(tmp_path)
    front = S3Front(s3_endpoint, lambda request: None, certificate)
    text, variable = CERTIFICATES[way]
    variables = {variable: str(authority)} if variable else {}
    try:
        configure(text.format(authority), AWS_ENDPOINT_URL=front.url, **variables)
        assert storage.stat(uri).size > 0
        assert (read_pixels(uri) == pixels).all()
    finally:
        front.stop()


@pytest.mark.usefixtures("gdal_without_retries")
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_certificate_authority_counts_for_http_too(serve, configure, tmp_path, variable):
    path = write_scene(tmp_path, "a.tif", scene_pixels())
    authority, certificate = write_certificate(tmp_path)
    front = S3Front(serve({"/a.tif": path.read_bytes()}).url, lambda request: None, certificate)
    storage.http._THREAD.session = None
    try:
        configure(**{variable: str(authority)})
        assert storage.stat(f"{front.url}/a.tif").size == path.stat().st_size
        assert (read_pixels(f"{front.url}/a.tif") == scene_pixels()).all()
    finally:
        front.stop()
        storage.http._THREAD.session = None


@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy"])
def test_the_proxy_of_all_requests_is_that_of_gdal(serve, configure, tmp_path, scheme, variable):
    """libcurl reads `http_proxy` in small letters alone."""
    data = write_scene(tmp_path, "a.tif", scene_pixels()).read_bytes()
    proxy = serve({"http://store.invalid/b/a.tif": data})  # a request to a proxy has the whole address as its path
    configure(AWS_ENDPOINT_URL="http://store.invalid", **{variable: proxy.url})
    uri = "s3://b/a.tif" if scheme == "s3" else "http://store.invalid/b/a.tif"
    assert storage.stat(uri).size == len(data)
    assert (read_pixels(uri) == scene_pixels()).all()
    configure(NO_PROXY="store.invalid")
    storage.s3_client.cache_clear()
    assert gdal.environment(uri).options["GDAL_HTTP_PROXY"] == ""


def test_keys_are_those_of_botocore(configure):
    profile = "[profile lab]\naws_access_key_id = lab\naws_secret_access_key = secret\n"
    configure(profile, AWS_PROFILE="lab")
    assert storage.s3_keys("mine") == Keys("test", "test", "", "env")
    assert storage.s3_keys("esa-worldcover-s2") is None


def test_pixels_are_read_while_the_credentials_of_a_role_rotate(bucket, configure, monkeypatch, s3_endpoint, tmp_path):
    """An open raster has keys of its own, which expire."""
    pixels = scene_pixels(32 * ROWS, 256)
    path = write_scene(tmp_path, "a.tif", pixels, compress="none", blockysize=ROWS)
    boto3.client("s3", endpoint_url=s3_endpoint).upload_file(str(path), bucket.removeprefix("s3://"), "a.tif")
    uri, role, rasters = f"{bucket}/a.tif", RotatingRole(uses=5, grace=4), gdal.OpenRasters(2)
    front = S3Front(s3_endpoint, role.refuse)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    try:
        configure(AWS_ENDPOINT_URL=front.url, AWS_CONTAINER_CREDENTIALS_FULL_URI=role.url)
        for n in range(32):
            assert storage.stat(uri).size == path.stat().st_size
            gdal.forget(uri)
            with gdal.environment(uri):
                raster = rasters.get(uri, lambda: rasterio.open(uri))
                window = Window(0, n * ROWS, 256, ROWS)
                assert (raster.read(window=window) == pixels[:, n * ROWS : (n + 1) * ROWS]).all()
        assert role.generation >= 8
        assert role.refused == 0
    finally:
        rasters.close(uri)
        front.stop()
        role.stop()
