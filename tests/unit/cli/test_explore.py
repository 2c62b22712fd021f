"""The explorer as a process: its messages, its exit codes, and databases that cannot be opened."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
import requests

from kiln.cli import explore
from kiln.explorer import database
from tests import ROOT
from tests.support import explorers

ROWS = [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(5)]


def start_server(tmp_path, *args):
    """Start a server; return its process, its address and its log file."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "kiln.cli.explore", "--cache", str(tmp_path / "cache"), "--port", "0", *args]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=stderr, env=os.environ | {"COLUMNS": "200"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell started us with &
        )  # fmt: skip
    until = time.monotonic() + 60
    while not (address := re.search(r"explorer is at (\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return process, address[1], log


@pytest.mark.parametrize(
    ("number", "code", "message"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_the_server_runs_until_a_signal_stops_it(tmp_path, number, code, message):
    process, address, log = start_server(tmp_path, "--db", explorers.write(tmp_path / "db", ROWS))
    try:
        assert requests.get(f"{address}api/about", timeout=60).json()["rows"] == 5
        assert address.startswith("http://127.0.0.1:")
        assert "without a password" not in log.read_text()
    finally:
        process.send_signal(number)
    assert process.wait(60) == code
    output = log.read_text()
    assert message in output
    assert "Traceback" not in output
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=2)


def test_an_address_open_to_other_machines_is_logged_as_a_warning(tmp_path):
    process, address, log = start_server(tmp_path, "--db", explorers.write(tmp_path / "db", ROWS), "--host", "0.0.0.0")
    try:
        assert "without a password: anyone who reaches this machine can look and search" in log.read_text()
        port = address.rstrip("/").rpartition(":")[2]
        answer = requests.get(f"http://127.0.0.1:{port}/api/version", headers={"Host": "box.example"}, timeout=60)
        assert answer.status_code == 200
    finally:
        process.terminate()
        process.wait(60)


def error_of(capsys, *args):
    """Return the exit status and the message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        explore.main([*args, "--port", "0"])
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return e.value.code, message


def test_databases_that_cannot_be_opened_are_errors(tmp_path, capsys):
    cache = ("--cache", str(tmp_path / "cache"))
    assert "no explorer database there; make it" in error_of(capsys, "--db", str(tmp_path / "none"), *cache)[1]
    (tmp_path / "empty").mkdir()
    assert "no finished explorer database there" in error_of(capsys, "--db", str(tmp_path / "empty"), *cache)[1]
    db = tmp_path / "built"  # written, not tagged: it is being built
    explorers.write(db, ROWS)
    database.connect(str(db)).open_table("chips").tags.delete("ready")
    code, message = error_of(capsys, "--db", str(db), *cache)
    assert code == 2
    assert "no finished explorer database there" in message
    about = {"worldcover": explorers.KILN | {"dimensions": 1024}}
    other = explorers.write(tmp_path / "other", ROWS, about)
    assert "expected 1024 dimensions as the metadata of worldcover, got 4" in error_of(capsys, "--db", other, *cache)[1]


def test_an_s3_path_that_cannot_be_read_is_an_error(bucket, tmp_path, capsys):
    code, message = error_of(capsys, "--db", f"{bucket}/nothing", "--cache", str(tmp_path))
    assert code == 2
    assert "no finished explorer database there" in message
    code, message = error_of(capsys, "--db", "s3://no-such-bucket-of-ours/explorer", "--cache", str(tmp_path))
    assert code == 2


def test_a_database_on_s3_is_served(bucket, tmp_path):
    table = database.connect(f"{bucket}/db").create_table(
        "chips", database.connect(explorers.write(tmp_path / "db", ROWS)).open_table("chips").to_arrow()
    )
    table.tags.create("ready", table.version)
    process, address, _ = start_server(tmp_path, "--db", f"{bucket}/db")
    try:
        answer = requests.post(f"{address}api/search", json={"likes": ["test:00003"], "k": 2}, timeout=60).json()
        assert [r["chip_id"] for r in answer["results"]] == ["test:00004", "test:00002"]
    finally:
        process.terminate()
        process.wait(60)


def test_wrong_settings_are_errors(tmp_path, capsys):
    db = ("--db", explorers.write(tmp_path / "db", ROWS), "--cache", str(tmp_path / "cache"))
    assert "--pictures: expected JSON" in error_of(capsys, *db, "--pictures", "{")[1]
    assert "--base-map: expected JSON" in error_of(capsys, *db, "--base-map", "nowhere.json")[1]
    assert "expected {z}, {x} and {y}" in error_of(capsys, *db, "--base-map", '{"url": "https://a.example/t.png"}')[1]
    assert "cannot listen at" in error_of(capsys, *db, "--host", "no.such.host.invalid")[1]
    assert "expected more than 0" in error_of(capsys, *db, "--poll", "0")[1]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in error_of(capsys, *db[:2], "--cache", str(tmp_path / "file"))[1]


def test_a_port_in_use_is_an_error(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as e:
            explore.main(["--db", str(tmp_path), "--cache", str(tmp_path / "cache"), "--port", str(port)])
    assert e.value.code == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err
