"""Runs of a small archive through a hostile network, compared with a run through an honest one."""

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq
import pytest
from botocore.retries.standard import ExponentialBackoff

from kiln.archives import raster_reading
from kiln.formats.ledger import ledger_name
from kiln.io import gdal, storage
from kiln.io.aws import session
from kiln.io.storage import http, store
from tests.bench.workload import MAKERS, Workload, write_weights
from tests.network.certificates import write_certificate
from tests.network.proxy import HostileProxy
from tests.support.aws import forget_credentials

SIDE_PX = 600
UNITS = 2
SCHEMES = ("http", "https", "s3")
BUCKET = "bucket"
CHECKPOINTS = "checkpoints"
STALL_S = 1  # after which a client gives up a silent connection


class Ending(StrEnum):
    """How a run through a hostile network ended."""

    SAME = "same"  # the bytes of an undisturbed run
    STOPPED = "stopped"  # with an error, nothing lost: the next try gave the same bytes
    WRONG = "wrong"


@dataclass(frozen=True)
class Outcome:
    """A run through a hostile network.

    Attributes:
        ending: How it ended.
        message: What was wrong, or the error it stopped with.
        faults: The faults that the network made, by kind.
    """

    ending: Ending
    message: str
    faults: dict[str, int]


class HostileRuns:
    """An archive of one dataset behind networks that can be hostile, and what a run through honest ones makes of it.

    It is a context manager that stops the networks.
    """

    def __init__(self, dataset: str, folder: Path) -> None:
        self._folder = folder
        self._weights = write_weights(folder, "tiny")
        certificate = write_certificate(folder)
        self._certificate = str(certificate.certificate)
        archive = folder / BUCKET / dataset
        self._load: Workload = MAKERS[dataset](archive, SIDE_PX, UNITS)
        self._proxies = {scheme: HostileProxy(folder, certificate if scheme == "https" else None) for scheme in SCHEMES}
        addresses = {scheme: f"{self._proxies[scheme].url}/{BUCKET}/{dataset}" for scheme in SCHEMES}
        self._roots = addresses | {"s3": f"s3://{BUCKET}/{dataset}"}
        self._files = [str(path.relative_to(archive)) for path in archive.rglob("*") if path.is_file()]
        self._expected: dict[str, dict[str, bytes]] = {}  # by scheme: the files of an undisturbed run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for proxy in self._proxies.values():
            proxy.stop()

    def run(self, seed: int, rate: float) -> Outcome:
        """Embed the archive through a network whose requests fail at a rate.

        Args:
            seed: Decides the scheme of the addresses, and which requests fail in which way.
            rate: The fraction of requests that fail.
        """
        scheme = SCHEMES[seed % len(SCHEMES)]
        proxy, output = self._proxies[scheme], self._folder / f"{scheme}-{seed}"
        with self._clients(proxy):
            proxy.become(seed, 0.0)
            load = self._load.copied_to(self._roots[scheme])
            if scheme not in self._expected:
                error, self._expected[scheme] = self._embed(load, self._folder / scheme)
                assert not error, error
            for name in self._files:
                gdal.forget(storage.join(self._roots[scheme], name))
            proxy.become(seed, rate)
            error, files = self._embed(load, output)
            faults = dict(proxy.faults)
            proxy.become(seed, 0.0)
            if not error:
                problem = self._difference(scheme, files)
            elif lost := [name for name in files if not name.startswith(CHECKPOINTS)]:
                problem = f"files after an error: {', '.join(lost)}"
            else:
                second_error, files = self._embed(load, output)
                problem = f"the next try: {second_error}" if second_error else self._difference(scheme, files)
        shutil.rmtree(output)
        ending = Ending.WRONG if problem else Ending.STOPPED if error else Ending.SAME
        return Outcome(ending, "; ".join(filter(None, (problem, error))), faults)

    def _embed(self, load: Workload, output: Path) -> tuple[str, dict[str, bytes]]:
        """Run `scripts.embed`; return its error, empty after a success, and the files below `output` by path."""
        errors, message = io.StringIO(), ""
        with contextlib.redirect_stderr(errors):
            try:
                load.embed(self._weights, output, "--checkpoints", str(output / CHECKPOINTS))
            except SystemExit as e:
                message = f"exit {e.code}: {errors.getvalue().strip()}"
        return message, {str(p.relative_to(output)): p.read_bytes() for p in output.rglob("*") if p.is_file()}

    def _difference(self, scheme: str, files: dict[str, bytes]) -> str:
        """Return how the files of a run differ from those of an undisturbed run; empty if they do not."""
        expected = self._expected[scheme]
        if files == expected:
            return ""
        names = [name for name in sorted({*files, *expected}) if files.get(name) != expected.get(name)]
        ledger = files.get(ledger_name(f"{self._load.shard.name}.parquet"))
        rows = pq.read_table(io.BytesIO(ledger)).to_pylist() if ledger else []
        units = [f"{row['unit_id']} {row['status']} {row['reason']}" for row in rows]
        return f"differs from an undisturbed run: {', '.join(names)}; ledger: {units}"

    @contextlib.contextmanager
    def _clients(self, proxy: HostileProxy) -> Iterator[None]:
        """Let clients trust the certificate, take the proxy for S3, lose patience quickly, and try again at once."""
        options = {
            "GDAL_HTTP_RETRY_DELAY": "0.05",
            "GDAL_HTTP_LOW_SPEED_TIME": str(STALL_S),
            "GDAL_HTTP_CONNECTTIMEOUT": str(STALL_S),
        }
        variables = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "REQUESTS_CA_BUNDLE": self._certificate,
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gdal, "OPTIONS", gdal.OPTIONS | options)
            for clients in (http, session):
                patch.setattr(clients, "TIMEOUT_S", (STALL_S, STALL_S))
            patch.setattr(http, "BACKOFF_S", 0.01)
            patch.setattr(store, "CUT_PAUSES_S", (0.0, 0.01))
            patch.setattr(raster_reading, "RETRY_PAUSES_S", (0.01, 0.05))
            patch.setattr(ExponentialBackoff, "delay_amount", lambda self, context: 0.01)
            for name, value in variables.items():
                patch.setenv(name, value)
            forget_credentials()
            yield
        forget_credentials()
