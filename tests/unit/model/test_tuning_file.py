"""Measured rates by machine and setting."""

from pathlib import Path

import pytest

from kiln.errors import ConfigError
from kiln.io import machine
from kiln.model import tuning_file
from kiln.model.tuning_file import EncoderSetting, read_rates, write_rates

SIZES = {"dim": 192, "depth": 4, "heads": 3, "mlp_ratio": 4, "seed": 7}
PUBLISHED = EncoderSetting.of(None, precision="float32", device="cpu", threads=2, batch=16, chip_px=256)


def test_a_setting_has_the_sizes_of_the_encoder() -> None:
    assert PUBLISHED.sizes == {"dim": 1024, "depth": 24, "heads": 16, "mlp": 4096, "dim_head": 64}
    small = EncoderSetting.of(SIZES, precision="float32", device="cuda:1", threads=2, batch=16, chip_px=256)
    assert small.sizes == {"dim": 192, "depth": 4, "heads": 3, "mlp": 768, "dim_head": 64}
    assert (small.device, small.threads) == ("cuda", 0), "a GPU's rate depends neither on its number nor on threads"


def test_rates_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    other = EncoderSetting.of(SIZES, precision="int8", device="cpu", threads=1, batch=1, chip_px=64)
    write_rates(path, {PUBLISHED: 1.0, other: 2.0})
    write_rates(path, {PUBLISHED: 3.5})
    assert read_rates(path) == {PUBLISHED: 3.5, other: 2.0}


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '[{"dim": 1}]', '{"a": 1}'])
def test_another_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.json: expected rates of `kiln tune`"):
        read_rates(path)


def test_each_kind_of_machine_has_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nmodel name\t: AMD EPYC 9R14 (Genoa)\nflags: a\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    monkeypatch.setattr(tuning_file.os, "cpu_count", lambda: 8)
    assert tuning_file.tuning_file("cpu") == Path("tuning/amd-epyc-9r14-genoa-8-cores.json")
    monkeypatch.setattr(tuning_file, "gpu_name", lambda: "NVIDIA H200")
    assert tuning_file.tuning_file("cuda:0", "rates") == Path("rates/nvidia-h200.json")
    monkeypatch.setattr(tuning_file, "gpu_name", lambda: "")
    assert tuning_file.tuning_file("cuda") == Path("tuning/unknown.json")
