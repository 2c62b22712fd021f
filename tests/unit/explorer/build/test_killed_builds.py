"""Builds that are killed, and two builds at once."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import lancedb
import pytest

from kiln.errors import ConfigError
from kiln.explorer.build import builder
from kiln.explorer.database import ExplorerDatabase
from tests import ROOT
from tests.support.builds import GRID, OTHER, build_of, ready, seeded, wanted
from tests.support.products import about, make_product


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_at(name):
    """Ends every build that comes to `name`, until it is undone."""
    patch = pytest.MonkeyPatch()

    def end(*args, **kwargs):
        raise Killed

    patch.setattr(builder, name, end)
    return patch


@pytest.mark.parametrize("where", ["create_indexes", "measure"])
def test_a_killed_first_build_is_no_database_and_the_next_run_completes(tmp_path, two, where):
    db = tmp_path / "db"
    patch = killed_at(where)
    with pytest.raises(Killed):
        build_of(db, *two)
    patch.undo()
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(str(db))
    assert build_of(db, *two)["rows"] == 200
    assert ready(db) == wanted(*two)


@pytest.mark.parametrize("where", ["create_indexes", "measure"])
def test_a_killed_growth_leaves_readers_on_the_old_version_and_the_next_run_completes(tmp_path, two, where):
    db = tmp_path / "db"
    build_of(db, two[0])
    patch = killed_at(where)
    with pytest.raises(Killed):
        build_of(db, *two)
    patch.undo()
    assert ready(db) == wanted(two[0])
    assert build_of(db, *two)["rows"] == 200
    assert ready(db) == wanted(*two)


def test_a_killed_growth_can_be_taken_back(tmp_path, two):
    """The next run asks for the old products again: nothing of the killed one shows."""
    db = tmp_path / "db"
    build_of(db, two[0])
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_of(db, *two)
    patch.undo()
    assert build_of(db, two[0])["rows"] == 100
    assert ready(db) == wanted(two[0])


def test_a_killed_build_with_other_weights_never_mixes_with_what_was_there(tmp_path, two):
    """Old product; a new table of other weights dies half-way; then the old products grow."""
    db = tmp_path / "db"
    build_of(db, two[0])
    other = make_product(tmp_path, 2020, columns=GRID, kiln=OTHER, vectors=seeded(2))
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_of(db, other)
    patch.undo()
    assert ready(db) == wanted(two[0])
    build_of(db, *two)
    assert ready(db) == wanted(*two)
    assert ExplorerDatabase(str(db)).metadata["worldcover"]["weights_sha256"] == about()["weights_sha256"]


def test_a_killed_growth_with_changed_rows_never_mixes_with_what_was_there(tmp_path, two):
    """A changed product dies half-way into the table; then the old one comes back beside a new one."""
    db = tmp_path / "db"
    build_of(db, two[0])
    changed = make_product(tmp_path, 2020, columns=GRID, vectors=seeded(3))
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_of(db, changed)
    patch.undo()
    build_of(db, *two)
    assert ready(db) == wanted(*two)


def counted(original, done, n):
    """`original`, which notes its call in `done`, or ends the process instead of the n-th."""

    def change(*args, **kwargs):
        if len(done) == n:
            raise Killed
        done.append(original.__name__)
        return original(*args, **kwargs)

    return change


def killed_before(monkeypatch, n):
    """Ends the build before its n-th change of the database; the list returned grows with each."""
    from lancedb.db import LanceDBConnection
    from lancedb.merge import LanceMergeInsertBuilder
    from lancedb.table import LanceTable, Tags

    done = []
    changes = {
        LanceDBConnection: ["create_table"],
        LanceMergeInsertBuilder: ["execute"],
        LanceTable: ["add", "create_index", "delete", "optimize", "restore", "set_unenforced_primary_key"],
        Tags: ["create", "delete", "update"],
    }
    for kind, names in changes.items():
        for name in names:
            monkeypatch.setattr(kind, name, counted(getattr(kind, name), done, n))
    return done


def test_a_run_killed_before_any_of_its_steps_is_mended_by_the_next(tmp_path, two):
    """2020 gives way to 2021 and the run ends anywhere; then both are asked for, then the first again."""
    base = tmp_path / "base"
    build_of(base, two[0])
    old, new, both = wanted(two[0]), wanted(two[1]), wanted(*two)
    for n in range(60):
        db = tmp_path / f"{n}"
        shutil.copytree(base, db)
        with pytest.MonkeyPatch.context() as patch:
            done = killed_before(patch, n)
            try:
                build_of(db, two[1])
            except Killed:
                ended = True
            else:
                ended = False
        assert ready(db) in ((old, new) if ended else (new,)), done
        build_of(db, *two)
        assert ready(db) == both, done
        build_of(db, two[0])
        assert ready(db) == old, done
        if not ended:
            break
    assert n >= 5
    assert not ended


BOTH = """
import sys, time
from pathlib import Path
from scripts import build_index
Path(sys.argv[2]).touch()
while not Path(sys.argv[1]).exists():
    time.sleep(0.005)
build_index.main(sys.argv[3:])
"""


def at_once(tmp_path, commands):
    """Runs the script with each command at the same moment: [(exit status, stderr)]."""
    start = tmp_path / f"start-{time.monotonic_ns()}"
    waiting = [tmp_path / f"{start.name}-{n}" for n in range(len(commands))]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BOTH, str(start), str(w), *c],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for w, c in zip(waiting, commands, strict=True)
    ]
    deadline = time.monotonic() + 60
    while not all(w.exists() for w in waiting) and time.monotonic() < deadline:
        time.sleep(0.01)
    start.touch()
    ended = []
    for p in running:
        _, err = p.communicate(timeout=60)
        ended.append((p.returncode, err))
    return ended


@pytest.mark.parametrize("fresh", [True, False], ids=["a new database", "a growing one"])
def test_two_runs_at_once_lose_and_double_nothing(tmp_path, two, fresh):
    db = tmp_path / "db"
    if not fresh:
        build_of(db, two[0])
    common = ["--records", *(m.record_file for m in two), "--db", str(db)]
    ended = at_once(tmp_path, [[*common, "--record", f"{tmp_path}/{n}.json"] for n in range(2)])
    for n, (code, err) in enumerate(ended):
        if code:
            assert "Traceback" not in err, err
            assert "error:" in err
            assert not Path(f"{tmp_path}/{n}.json").exists()
    assert build_of(db, *two)["rows"] == 200  # mends what a conflict left undone
    assert ready(db) == wanted(*two)
    latest = lancedb.connect(str(db)).open_table("chips").search().limit(1000).to_arrow()["chip_id"].to_pylist()
    assert len(latest) == len(set(latest)) == 200
