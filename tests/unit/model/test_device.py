"""Cards: each job of a machine takes one of its own, and lets it go."""

import subprocess
import sys
import threading

import pytest

from kiln.errors import ConfigError
from kiln.model import device
from kiln.model.device import claimed


def test_a_named_device_is_taken_as_it_is(tmp_path):
    with claimed("cpu") as cpu, claimed("cuda:1", 2, tmp_path) as card, claimed("cuda:1", 2, tmp_path) as same:
        assert (cpu, card, same) == ("cpu", "cuda:1", "cuda:1")


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_card_that_is_not_there_is_said(tmp_path, name, count):
    with pytest.raises(ConfigError, match=rf"--device {name}: this machine shows torch {count} cards"):
        with claimed(name, count, tmp_path):
            pass


def test_jobs_take_cards_of_their_own_and_wait_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "POLL", 0.01)
    taken = threading.Event()
    third = []

    def late() -> None:
        with claimed("cuda", 2, tmp_path) as card:
            third.append(card)
        taken.set()

    with claimed("cuda", 2, tmp_path) as first:
        with claimed("cuda", 2, tmp_path) as second:
            assert {first, second} == {"cuda:0", "cuda:1"}
            thread = threading.Thread(target=late)
            thread.start()
            assert not taken.wait(0.2), "both are held"
        assert taken.wait(10)
        thread.join()
    assert third == ["cuda:1"]


def test_a_job_that_was_killed_holds_no_card(tmp_path):
    code = (
        "import pathlib, sys, time; from kiln.model.device import claimed\n"
        f"with claimed('cuda', 1, pathlib.Path({str(tmp_path)!r})) as card: print(card, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "cuda:0\n"
    other.kill()
    other.wait()
    with claimed("cuda", 1, tmp_path) as card:
        assert card == "cuda:0"


def test_cards_are_told_apart_by_what_the_driver_calls_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with claimed("cuda", 1, tmp_path) as card:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
        with claimed("cuda", 1, tmp_path) as other:
            assert (card, other) == ("cuda:0", "cuda:0")
        assert sorted(p.stem for p in tmp_path.iterdir()) == ["3", "5"]
