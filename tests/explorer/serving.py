"""The explorer's server in a process of its own."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from tests import ROOT


class Server:
    """`kiln.cli.explore` as a person starts it; it may be stopped and started again at its port."""

    def __init__(self, folder: Path, kept: Path, db: str = "db", *more: str) -> None:
        """Over the database `db`; relative paths are those of `folder`, and `kept` gets its cache and log."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder, self.log, self.address = folder, kept / "server.log", f"http://127.0.0.1:{self.port}/"
        self.arguments = ["--db", db, "--cache", str(kept / "cache"), "--poll", "0.5", *more]
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, "-m", "kiln.cli.explore", "--port", str(self.port), *self.arguments]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        for _ in range(600):
            if self.process.poll() is not None:
                pytest.fail(self.log.read_text())
            try:
                requests.get(self.address + "api/version", timeout=5)
                return
            except requests.ConnectionError:
                time.sleep(0.1)
        pytest.fail("the server does not answer after 60 s")

    def stop(self) -> None:
        """Stop it as a person does."""
        self.process.terminate()
        self.process.wait(20)
