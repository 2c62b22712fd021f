"""Fixtures that more than one test module uses."""

import hashlib
import importlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import duckdb
import hypothesis
import pytest
import torch

from kiln.io import gdal, storage
from kiln.io.storage import http, store
from kiln.model import checkpoint, clay, weights
from tests import ROOT
from tests.support import golden
from tests.support.aws import forget_credentials
from tests.support.server import FileServer

torch.set_num_threads(1)
slow_machines = [hypothesis.HealthCheck.too_slow]  # tests do not depend on the speed of the machine
hypothesis.settings.register_profile("kiln", deadline=None, suppress_health_check=slow_machines)
hypothesis.settings.load_profile("kiln")
http.BACKOFF_S, store.CUT_PAUSES_S = 0.01, (0.0, 0.0)  # servers of the tests need no pause
UNTRAINED = {"seed": 3, "dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 2}


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """Restore the SIGTERM handler: scripts that run in the process of a test replace it."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def shared() -> Path | None:
    """The folder `shared` next to the project, with real images and reference values; None if it does not exist."""
    folder = ROOT.parent / "shared"
    return folder if (folder / "archive").is_dir() else None


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file of a tiny untrained encoder, as the rule `encoder_weights` writes it."""
    path = tmp_path_factory.mktemp("weights") / "untrained-float32.safetensors"
    checkpoint.write_untrained(UNTRAINED, "float32", path)
    return path


@pytest.fixture(scope="session")
def encoder(encoder_file: Path) -> clay.ClayEncoder:
    """The tiny encoder of `encoder_file`. All tests share it and must not change it."""
    return weights.load_encoder(encoder_file)


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint of the reference implementation, in the published layout."""
    path = tmp_path_factory.mktemp("checkpoint") / "clay-micro.ckpt"
    torch.save(golden.checkpoint(), path)
    return path


@pytest.fixture(scope="session")
def checkpoint_sha256(checkpoint_file: Path) -> str:
    """The sha256 of `checkpoint_file`."""
    return hashlib.sha256(checkpoint_file.read_bytes()).hexdigest()


@pytest.fixture
def serve() -> Iterator[Callable[..., FileServer]]:
    """A function that starts a file server. All servers stop at the end of the test."""
    started: list[FileServer] = []

    def start(files: dict[str, bytes] | None = None, **options: object) -> FileServer:
        started.append(FileServer(files or {}, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose version was asked for, in order."""
    uris: list[str] = []
    stat = storage.stat

    def counted(uri: str) -> storage.Stat | None:
        uris.append(uri)
        return stat(uri)

    monkeypatch.setattr(storage, "stat", counted)
    return uris


@pytest.fixture
def gdal_without_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make GDAL fail on the first HTTP error, without retries, and at a connection that hangs after ten seconds."""
    quick = {"GDAL_HTTP_MAX_RETRY": "0", "GDAL_HTTP_LOW_SPEED_TIME": "10"}
    monkeypatch.setattr(gdal, "OPTIONS", gdal.OPTIONS | quick)


@pytest.fixture
def gdal_without_cache(monkeypatch: pytest.MonkeyPatch, gdal_without_retries: None) -> None:
    """Make GDAL cache nothing of remote files, and not retry.

    A file server in this process then stalls if more than one thread reads a file.
    """
    uncached = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127:/vsis3"}
    monkeypatch.setattr(gdal, "OPTIONS", gdal.OPTIONS | uncached)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The URL of a simulated S3 server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """A function that points every AWS client at an endpoint, with invented credentials."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)

    def point(endpoint: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage.s3_client.cache_clear()

    yield point
    storage.s3_client.cache_clear()


@pytest.fixture
def own_credentials(aws: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """A function to call after each change of credentials or profile. They are forgotten after the test."""
    yield forget_credentials
    forget_credentials()


@pytest.fixture
def bucket(s3_endpoint: str, aws: Callable[[str], None], request: pytest.FixtureRequest) -> str:
    """The `s3://` URI of an empty bucket that no other test uses, on the simulated S3 server."""
    aws(s3_endpoint)
    name = "t-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def duckdb_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder where DuckDB finds its extensions spatial and httpfs without the network."""
    home = tmp_path_factory.mktemp("duckdb-home")
    con = duckdb.connect(config={"extension_directory": str(home / ".duckdb" / "extensions")})
    for extension in ("spatial", "httpfs"):
        importlib.import_module("duckdb_extensions").import_extension(extension, con=con)
    con.close()
    return home


@pytest.fixture
def gpio(duckdb_home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs geoparquet-io with the given arguments and returns the finished process."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(duckdb_home), "COLUMNS": "200"}
    command = str(Path(sys.executable).parent / "gpio")
    return lambda *args: subprocess.run([command, *args], capture_output=True, text=True, env=env, timeout=100)
