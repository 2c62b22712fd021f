"""A few damaged inputs of every kind, and the runner of `make fuzz` itself."""

import os
import subprocess
import sys
import time
from random import Random

import pytest

from kiln.errors import SourceError
from tests import ROOT
from tests.fuzz import runner
from tests.fuzz.mutations import damage_bytes, damage_json
from tests.fuzz.runner import Kind, Result, run_kinds


def test_a_few_damaged_inputs_of_every_kind_end_in_a_clear_error_or_in_the_same_result():
    command = [sys.executable, "-m", "tests.fuzz", "--seeds", "0", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "28" in done.stdout


def read_by_content(folder):
    """Do what the damaged file, whose first byte is its seed, asks for."""
    action = (folder / "input").read_bytes()[:1]
    if action == b"0":
        raise SourceError("x: expected that, got this. Do this.")
    if action == b"1":
        raise ValueError("a bug")
    if action == b"2":
        os._exit(7)
    if action == b"3":
        time.sleep(10_000)
    if action == b"4":
        raise SourceError("two\nlines")
    return Result({b"5": "other", b"6": "failed"}.get(action, "sound"), action == b"6")


def toy_kind(**changes):
    def damage(rng, folder):
        (folder / "input").write_text(folder.name)

    def make(folder):
        (folder / "input").write_text("sound")

    return Kind(**{"name": "toy", "count": 8, "make": make, "damage": damage, "read": read_by_content} | changes)


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_outcome_has_its_verdict(tmp_path, monkeypatch, jobs):
    monkeypatch.setattr(runner, "TIME_LIMIT_S", 3.0)
    seeds = [0, 1, 2, 4, 5, 6, 7, 3]
    outcomes = {o.seed: o for o in run_kinds([toy_kind()], tmp_path, jobs, lambda kind: seeds)}
    assert [outcomes[seed].verdict for seed in range(8)] == [
        *("refused", "traceback", "died", "hang", "untidy", "changed", "failed row", "unchanged")
    ]
    assert "ValueError: a bug" in outcomes[1].text
    assert outcomes[2].text == "exit code 7"
    assert list(tmp_path.iterdir()) == []


def test_another_result_is_a_known_limit_only_if_the_kind_says_so(tmp_path):
    kind = toy_kind(limit=lambda sound, damaged: (sound / "input").read_text() != (damaged / "input").read_text())
    (outcome,) = run_kinds([kind], tmp_path, 1, lambda kind: [5])
    assert outcome.verdict == "known limit"


def test_a_sound_input_that_cannot_be_read_stops_the_run(tmp_path):
    with pytest.raises(AssertionError, match="toy: the sound input cannot be read: refused x: expected that"):
        run_kinds([toy_kind(make=lambda folder: (folder / "input").write_text("0"))], tmp_path, 1, lambda kind: [1])


def test_damage_is_made_by_seed_and_always_changes_something():
    for seed in range(200):
        data = Random(seed).randbytes(100)
        damaged = damage_bytes(Random(seed), data)
        assert damaged != data
        assert damaged == damage_bytes(Random(seed), data)
        text = damage_json(Random(seed), {"a": [1, {"b": "c"}], "d": None})
        assert text == damage_json(Random(seed), {"a": [1, {"b": "c"}], "d": None})
