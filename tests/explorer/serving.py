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
    """A process of `kiln.cli.explore`. It can be stopped and started again at the same port."""

    def __init__(self, folder: Path, state_folder: Path, db: str = "db", *more: str) -> None:
        """Serve the database `db` from the working directory `folder`; cache and log go to `state_folder`."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.folder, self.log, self.address = folder, state_folder / "server.log", f"http://127.0.0.1:{self.port}/"
        self.arguments = ["--db", db, "--cache", str(state_folder / "cache"), "--poll", "0.5", *more]
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
        """Terminate it and wait until it has ended."""
        self.process.terminate()
        self.process.wait(20)
