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
import pytest
import torch

from kiln.io import gdal, storage
from kiln.io.storage import http
from kiln.model import checkpoint, clay, weights
from tests import ROOT
from tests.support import golden
from tests.support.server import FileServer

torch.set_num_threads(1)
http.BACKOFF_S = 0.01  # servers of the tests need no pause
UNTRAINED = {"seed": 3, "dim": 32, "depth": 1, "heads": 2, "mlp_ratio": 2}


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """Scripts that run inside a test take SIGTERM over; give it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def shared() -> Path | None:
    """The folder of real pixels and reference numbers beside the project, None where it is not."""
    folder = ROOT.parent / "shared"
    return folder if (folder / "archive").is_dir() else None


@pytest.fixture(scope="session")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Safetensors of a tiny untrained encoder, as `encoder_weights` makes them."""
    path = tmp_path_factory.mktemp("weights") / "untrained-float32.safetensors"
    checkpoint.write_untrained(UNTRAINED, "float32", path)
    return path


@pytest.fixture(scope="session")
def encoder(encoder_file: Path) -> clay.ClayEncoder:
    """The tiny encoder of `encoder_file`; nobody changes it."""
    return weights.load_encoder(encoder_file)


@pytest.fixture(scope="session")
def checkpoint_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's small checkpoint in the published layout."""
    path = tmp_path_factory.mktemp("checkpoint") / "clay-micro.ckpt"
    torch.save(golden.checkpoint(), path)
    return path


@pytest.fixture(scope="session")
def checkpoint_sha256(checkpoint_file: Path) -> str:
    return hashlib.sha256(checkpoint_file.read_bytes()).hexdigest()


@pytest.fixture
def serve() -> Iterator[Callable[..., FileServer]]:
    """Starts http servers of files; all of them end with the test."""
    started: list[FileServer] = []

    def start(files: dict[str, bytes] | None = None, **options: object) -> FileServer:
        started.append(FileServer(files or {}, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL gives up at once."""
    monkeypatch.setattr(gdal, "OPTIONS", gdal.OPTIONS | {"GDAL_HTTP_MAX_RETRY": "0"})


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch, impatient: None) -> None:
    """And keeps nothing of remote files. A server in this process then stalls unless one thread reads a file."""
    told = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/http://127:/vsis3"}
    monkeypatch.setattr(gdal, "OPTIONS", gdal.OPTIONS | told)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Points every AWS client at an endpoint, with credentials that are nobody's."""
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
def bucket(s3_endpoint: str, aws: Callable[[str], None], request: pytest.FixtureRequest) -> str:
    """`s3://` URI of an empty bucket of the test's own, on a server that speaks S3."""
    aws(s3_endpoint)
    name = "t-" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def duckdb_home(tmp_path_factory):
    """A home folder where DuckDB finds its spatial extension without the network."""
    home = tmp_path_factory.mktemp("duckdb-home")
    con = duckdb.connect(config={"extension_directory": str(home / ".duckdb" / "extensions")})
    importlib.import_module("duckdb_extensions").import_extension("spatial", con=con)
    con.close()
    return home


@pytest.fixture
def gpio(duckdb_home):
    """Runs geoparquet-io with these arguments; returns the finished process."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HOME": str(duckdb_home), "COLUMNS": "200"}
    command = str(Path(sys.executable).parent / "gpio")
    return lambda *args: subprocess.run([command, *args], capture_output=True, text=True, env=env, timeout=100)
