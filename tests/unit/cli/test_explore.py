"""The explorer as people start it: a process, its messages, its end, and databases that cannot be opened."""

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


def started(tmp_path, *args):
    """A running server and its address."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "kiln.cli.explore", "--cache", str(tmp_path / "cache"), "--port", "0", *args]
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=said, env=os.environ | {"COLUMNS": "200"},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where a shell started us with &
        )  # fmt: skip
    until = time.monotonic() + 60
    while not (at := re.search(r"explorer is at (\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return process, at[1], log


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_it_serves_until_it_is_told_to_stop(tmp_path, number, code, said):
    process, address, log = started(tmp_path, "--db", explorers.write(tmp_path / "db", ROWS))
    try:
        assert requests.get(f"{address}api/about", timeout=60).json()["rows"] == 5
        assert address.startswith("http://127.0.0.1:")
        assert "without a password" not in log.read_text()
    finally:
        process.send_signal(number)
    assert process.wait(60) == code
    told = log.read_text()
    assert said in told
    assert "Traceback" not in told
    with pytest.raises(requests.ConnectionError):
        requests.get(address, timeout=2)


def test_another_address_than_this_machines_own_is_told(tmp_path):
    process, address, log = started(tmp_path, "--db", explorers.write(tmp_path / "db", ROWS), "--host", "0.0.0.0")
    try:
        assert "without a password: anyone who reaches this machine can look and search" in log.read_text()
        port = address.rstrip("/").rpartition(":")[2]
        answer = requests.get(f"http://127.0.0.1:{port}/api/version", headers={"Host": "box.example"}, timeout=60)
        assert answer.status_code == 200
    finally:
        process.terminate()
        process.wait(60)


def refused(capsys, *args):
    """Exit status and what a person reads."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        explore.main([*args, "--port", "0"])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return e.value.code, said


def test_databases_that_cannot_be_opened_are_said(tmp_path, capsys):
    cache = ("--cache", str(tmp_path / "cache"))
    assert "no explorer database there; make it" in refused(capsys, "--db", str(tmp_path / "none"), *cache)[1]
    (tmp_path / "empty").mkdir()
    assert "no finished explorer database there" in refused(capsys, "--db", str(tmp_path / "empty"), *cache)[1]
    db = tmp_path / "built"  # written, not tagged: it is being built
    explorers.write(db, ROWS)
    database.connect(str(db)).open_table("chips").tags.delete("ready")
    code, said = refused(capsys, "--db", str(db), *cache)
    assert code == 2
    assert "no finished explorer database there" in said
    about = {"worldcover": explorers.KILN | {"dimensions": 1024}}
    other = explorers.write(tmp_path / "other", ROWS, about)
    assert "expected 1024 dimensions as the metadata of worldcover, got 4" in refused(capsys, "--db", other, *cache)[1]


def test_an_s3_path_that_cannot_be_read_is_said(bucket, tmp_path, capsys):
    code, said = refused(capsys, "--db", f"{bucket}/nothing", "--cache", str(tmp_path))
    assert code == 2
    assert "no finished explorer database there" in said
    code, said = refused(capsys, "--db", "s3://no-such-bucket-of-ours/explorer", "--cache", str(tmp_path))
    assert code == 2


def test_a_database_on_s3_is_served(bucket, tmp_path):
    table = database.connect(f"{bucket}/db").create_table(
        "chips", database.connect(explorers.write(tmp_path / "db", ROWS)).open_table("chips").to_arrow()
    )
    table.tags.create("ready", table.version)
    process, address, _ = started(tmp_path, "--db", f"{bucket}/db")
    try:
        told = requests.post(f"{address}api/search", json={"likes": ["test:00003"], "k": 2}, timeout=60).json()
        assert [r["chip_id"] for r in told["results"]] == ["test:00004", "test:00002"]
    finally:
        process.terminate()
        process.wait(60)


def test_settings_that_cannot_be_are_said(tmp_path, capsys):
    db = ("--db", explorers.write(tmp_path / "db", ROWS), "--cache", str(tmp_path / "cache"))
    assert "--pictures: expected JSON" in refused(capsys, *db, "--pictures", "{")[1]
    assert "--base-map: expected JSON" in refused(capsys, *db, "--base-map", "nowhere.json")[1]
    assert "expected {z}, {x} and {y}" in refused(capsys, *db, "--base-map", '{"url": "https://a.example/t.png"}')[1]
    assert "cannot listen at" in refused(capsys, *db, "--host", "no.such.host.invalid")[1]
    assert "expected more than 0" in refused(capsys, *db, "--poll", "0")[1]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(capsys, *db[:2], "--cache", str(tmp_path / "file"))[1]


def test_a_port_that_is_taken_is_said(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as e:
            explore.main(["--db", str(tmp_path), "--cache", str(tmp_path / "cache"), "--port", str(port)])
    assert e.value.code == 2
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err
