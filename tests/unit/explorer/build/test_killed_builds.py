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
from tests.support.builds import GRID, OTHER, build_database, product_vectors, read_vectors, seeded_vectors
from tests.support.products import make_product, shard_metadata


class Killed(BaseException):
    """Stands in for the end of the process."""


def killed_at(name):
    """End every build that calls `name`; return the patch to undo."""
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
        build_database(db, *two)
    patch.undo()
    with pytest.raises(ConfigError, match="no finished explorer database"):
        ExplorerDatabase(str(db))
    assert build_database(db, *two)["rows"] == 200
    assert read_vectors(db) == product_vectors(*two)


@pytest.mark.parametrize("where", ["create_indexes", "measure"])
def test_a_killed_growth_leaves_readers_on_the_old_version_and_the_next_run_completes(tmp_path, two, where):
    db = tmp_path / "db"
    build_database(db, two[0])
    patch = killed_at(where)
    with pytest.raises(Killed):
        build_database(db, *two)
    patch.undo()
    assert read_vectors(db) == product_vectors(two[0])
    assert build_database(db, *two)["rows"] == 200
    assert read_vectors(db) == product_vectors(*two)


def test_a_killed_growth_can_be_undone(tmp_path, two):
    """The next run has the old products again; no row of the killed run is visible."""
    db = tmp_path / "db"
    build_database(db, two[0])
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_database(db, *two)
    patch.undo()
    assert build_database(db, two[0])["rows"] == 100
    assert read_vectors(db) == product_vectors(two[0])


def test_a_killed_build_with_other_weights_never_mixes_with_the_old_rows(tmp_path, two):
    """A build with other weights is killed half-way. Then products with the old weights are built."""
    db = tmp_path / "db"
    build_database(db, two[0])
    other = make_product(tmp_path, 2020, columns=GRID, kiln=OTHER, vectors=seeded_vectors(2))
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_database(db, other)
    patch.undo()
    assert read_vectors(db) == product_vectors(two[0])
    build_database(db, *two)
    assert read_vectors(db) == product_vectors(*two)
    assert ExplorerDatabase(str(db)).metadata["worldcover"]["weights_sha256"] == shard_metadata()["weights_sha256"]


def test_a_killed_growth_with_changed_rows_never_mixes_with_the_old_rows(tmp_path, two):
    """A build with a changed product is killed half-way. Then the old product is built with a new one."""
    db = tmp_path / "db"
    build_database(db, two[0])
    changed = make_product(tmp_path, 2020, columns=GRID, vectors=seeded_vectors(3))
    patch = killed_at("create_indexes")
    with pytest.raises(Killed):
        build_database(db, changed)
    patch.undo()
    build_database(db, *two)
    assert read_vectors(db) == product_vectors(*two)


def counted(original, done, n):
    """Wrap `original`: add each call to `done`, and end the process instead of the n-th."""

    def change(*args, **kwargs):
        if len(done) == n:
            raise Killed
        done.append(original.__name__)
        return original(*args, **kwargs)

    return change


def killed_before(monkeypatch, n):
    """End the build before its n-th change of the database; return the list of changes made so far."""
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


def test_the_next_run_repairs_a_run_killed_before_any_of_its_steps(tmp_path, two):
    """2021 replaces 2020 and the run is killed at any step. Then both are built, then 2020 alone."""
    base = tmp_path / "base"
    build_database(base, two[0])
    old, new, both = product_vectors(two[0]), product_vectors(two[1]), product_vectors(*two)
    for n in range(60):
        db = tmp_path / f"{n}"
        shutil.copytree(base, db)
        with pytest.MonkeyPatch.context() as patch:
            done = killed_before(patch, n)
            try:
                build_database(db, two[1])
            except Killed:
                ended = True
            else:
                ended = False
        assert read_vectors(db) in ((old, new) if ended else (new,)), done
        build_database(db, *two)
        assert read_vectors(db) == both, done
        build_database(db, two[0])
        assert read_vectors(db) == old, done
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
    """Run the script with every command at the same time; return [(exit status, stderr)]."""
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
def test_two_runs_at_once_neither_lose_nor_duplicate_rows(tmp_path, two, fresh):
    db = tmp_path / "db"
    if not fresh:
        build_database(db, two[0])
    common = ["--records", *(m.record_file for m in two), "--db", str(db)]
    ended = at_once(tmp_path, [[*common, "--record", f"{tmp_path}/{n}.json"] for n in range(2)])
    for n, (code, err) in enumerate(ended):
        if code:
            assert "Traceback" not in err, err
            assert "error:" in err
            assert not Path(f"{tmp_path}/{n}.json").exists()
    assert build_database(db, *two)["rows"] == 200  # completes what a conflict left undone
    assert read_vectors(db) == product_vectors(*two)
    latest = lancedb.connect(str(db)).open_table("chips").search().limit(1000).to_arrow()["chip_id"].to_pylist()
    assert len(latest) == len(set(latest)) == 200
