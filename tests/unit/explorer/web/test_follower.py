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


def test_the_next_version_is_followed_and_who_is_answered_keeps_theirs(tmp_path, other, monkeypatch):
    db = tmp_path / "db"
    rows = [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(10)]
    made = other(explorers.write(db, rows[:5]))
    made.follower.start()
    first = made.get("/api/version").json()["version"]
    arrived, release, search = threading.Event(), threading.Event(), version.search

    def held(*args):
        arrived.set()
        release.wait(10)
        return search(*args)

    monkeypatch.setattr(version, "search", held)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(made.post, "/api/search", {"likes": ["test:00000"], "k": 50})
        arrived.wait(10)
        explorers.write(db, rows)
        wait_for(lambda: made.get("/api/version").json()["version"] != first)
        release.set()
        told = answer.result().json()
    assert (told["version"], len(told["results"])) == (first, 4)
    assert len(made.post("/api/search", {"likes": ["test:00000"], "k": 50}).json()["results"]) == 9
    assert made.get("/api/about").json()["rows"] == 10


def test_a_build_without_a_tag_is_not_shown_and_a_lost_database_is_said(tmp_path, other):
    db = tmp_path / "db"
    made = other(explorers.write(db, [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(5)]))
    made.follower.start()
    first = made.get("/api/version").json()
    table = database.connect(str(db)).open_table("chips")
    table.delete("chip_id = 'test:00001'")
    time.sleep(0.5)
    assert made.get("/api/version").json() == first
    db.rename(tmp_path / "gone")  # in one step: a database that is half removed is told of in other words
    wait_for(lambda: made.get("/api/version").json()["problem"])
    told = made.get("/api/version").json()
    assert told["version"] == first["version"]
    # connecting makes the folder again if it goes between the two looks at it: "no finished explorer database there"
    assert re.search(r"no (finished )?explorer database there", told["problem"])
    assert made.get("/api/chip?id=test:00001").status_code == 200  # what is open stays open
    explorers.write(db, [explorers.chip(n, n, 0, [1, n, 0, 0]) for n in range(6)])
    wait_for(lambda: made.get("/api/about").json()["rows"] == 6)
    wait_for(lambda: made.get("/api/version").json()["problem"] is None)
