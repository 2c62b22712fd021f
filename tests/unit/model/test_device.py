"""GPUs: each job of a machine claims its own, and releases it."""

import subprocess
import sys
import threading

import pytest

from kiln.errors import ConfigError
from kiln.model import device
from kiln.model.device import claim_device


def test_a_named_device_is_used_without_a_claim(tmp_path):
    with (
        claim_device("cpu") as cpu,
        claim_device("cuda:1", 2, tmp_path) as gpu,
        claim_device("cuda:1", 2, tmp_path) as same,
    ):
        assert (cpu, gpu, same) == ("cpu", "cuda:1", "cuda:1")


@pytest.mark.parametrize(("name", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_missing_gpu_is_an_error(tmp_path, name, count):
    with pytest.raises(ConfigError, match=rf"--device {name}: expected a GPU, but torch has {count} of them"):
        with claim_device(name, count, tmp_path):
            pass


def test_jobs_claim_their_own_gpu_and_wait_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "POLL_S", 0.01)
    taken = threading.Event()
    third = []

    def late() -> None:
        with claim_device("cuda", 2, tmp_path) as gpu:
            third.append(gpu)
        taken.set()

    with claim_device("cuda", 2, tmp_path) as first:
        with claim_device("cuda", 2, tmp_path) as second:
            assert {first, second} == {"cuda:0", "cuda:1"}
            thread = threading.Thread(target=late)
            thread.start()
            assert not taken.wait(0.2), "both are held"
        assert taken.wait(10)
        thread.join()
    assert third == ["cuda:1"]


def test_a_killed_job_holds_no_gpu(tmp_path):
    code = (
        "import pathlib, sys, time; from kiln.model.device import claim_device\n"
        f"with claim_device('cuda', 1, pathlib.Path({str(tmp_path)!r})) as gpu: print(gpu, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "cuda:0\n"
    other.kill()
    other.wait()
    with claim_device("cuda", 1, tmp_path) as gpu:
        assert gpu == "cuda:0"


def test_gpus_are_identified_by_the_names_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with claim_device("cuda", 1, tmp_path) as gpu:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
        with claim_device("cuda", 1, tmp_path) as other:
            assert (gpu, other) == ("cuda:0", "cuda:0")
        assert sorted(p.stem for p in tmp_path.iterdir()) == ["3", "5"]
