"""The server follows the tag to the next version."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from kiln.explorer import database
from kiln.explorer.web import version
from tests.support import explorers


def wait_for(condition):
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    assert condition()


def test_the_next_version_is_served_and_running_requests_finish_on_the_old_one(tmp_path, other, monkeypatch):
    db = tmp_path / "db"
    rows = [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(10)]
    server = other(explorers.write(db, rows[:5]))
    server.follower.start()
    first = server.get("/api/version").json()["version"]
    arrived, release, search = threading.Event(), threading.Event(), version.search

    def delayed(*args):
        arrived.set()
        release.wait(10)
        return search(*args)

    monkeypatch.setattr(version, "search", delayed)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.post, "/api/search", {"likes": ["test:00000"], "k": 50})
        arrived.wait(10)
        explorers.write(db, rows)
        wait_for(lambda: server.get("/api/version").json()["version"] != first)
        release.set()
        result = answer.result().json()
    assert (result["version"], len(result["results"])) == (first, 4)
    assert len(server.post("/api/search", {"likes": ["test:00000"], "k": 50}).json()["results"]) == 9
    assert server.get("/api/about").json()["rows"] == 10


def test_an_untagged_build_is_not_served_and_a_lost_database_is_reported(tmp_path, other):
    db = tmp_path / "db"
    server = other(explorers.write(db, [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(5)]))
    server.follower.start()
    first = server.get("/api/version").json()
    table = database.connect(str(db)).open_table("chips")
    table.delete("chip_id = 'test:00001'")
    time.sleep(0.5)
    assert server.get("/api/version").json() == first
    db.rename(tmp_path / "gone")  # in one step: a partly removed database is reported with another message
    wait_for(lambda: server.get("/api/version").json()["problem"])
    state = server.get("/api/version").json()
    assert state["version"] == first["version"]
    # connecting creates the folder again if it is renamed between the two checks: "no finished explorer database there"
    assert re.search(r"no (finished )?explorer database there", state["problem"])
    assert server.get("/api/chip?id=test:00001").status_code == 200  # the open version stays usable
    explorers.write(db, [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(6)])
    wait_for(lambda: server.get("/api/about").json()["rows"] == 6)
    wait_for(lambda: server.get("/api/version").json()["problem"] is None)
