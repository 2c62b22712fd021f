"""Tuning: operations counted as torch counts them, the table, the choice, wrong flags; a small encoder for real."""

import json
from dataclasses import replace

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kiln.cli import tune
from kiln.cli.tune import Speed
from kiln.model import clay, weights
from kiln.model.identity import PRECISIONS

SMALL = clay.Geometry(dim=64, depth=6, heads=2, dim_head=32, mlp=128)
FOUND = [
    Speed("float32", 1, 0.50, 360.0, 400.0),
    Speed("float32", 8, 0.60, 430.0, 500.0),
    Speed("float32", 16, 0.605, 433.0, 500.0),
    Speed("bfloat16", 8, 0.20, 140.0, 150.0),
]


def test_operations_are_those_that_torch_counts() -> None:
    encoder = weights.untrained_encoder(replace(SMALL, depth=3), 0)
    x = torch.randn(2, 17, 64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # whose products are counted
        encoder.transformer(x)
    assert 2 * 3 * tune.block_flops(SMALL, 17) == counter.get_total_flops()


def test_the_fastest_is_taken_and_of_equals_the_smallest_batch() -> None:
    assert tune.best(FOUND) == FOUND[1], "1% more is not worth twice the memory"
    assert tune.best(FOUND, slack=0) == FOUND[2]
    assert tune.best(FOUND[3:]) == FOUND[3]


def test_int8_is_told_and_not_recommended() -> None:
    rounded = Speed("int8", 8, 0.78, 560.0, 600.0)
    assert tune.best([*FOUND, rounded]) == FOUND[1]
    assert tune.best([rounded]) == rounded
    assert "int8 is 1.30 times as fast, and rounds." in tune.report([*FOUND, rounded], "cpu", 2)
    assert "and rounds" not in tune.report([*FOUND, replace(rounded, chips_per_second=0.5)], "cpu", 2)
    assert "and rounds" not in tune.report([rounded], "cpu", 2)


def test_the_table_ends_with_lines_for_the_config() -> None:
    said = tune.report(FOUND, "cpu", 2)
    head, _, second, *_ = said.splitlines()
    assert head.split() == ["precision", "batch", "chips/s", "Gflop/s", "its", "matrices", "alone", "share"]
    assert second.split() == ["float32", "8", "0.6", "430", "500", "86%"]
    assert yaml.safe_load(said.partition("For the config:")[2]) == {
        "model": {"precision": "float32"},
        "resources": {"batch_size": 8, "embed_threads": 2, "device": "cpu"},
        "plan": {"chips_per_second": 0.6},
    }


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_few_blocks_tell_how_long_all_take(precision: str) -> None:
    found = tune.speed(SMALL, 2, precision, "cpu", chip=64)
    assert (found.precision, found.batch) == (precision, 2)
    assert found.chips_per_second > 0
    flops = tune.block_flops(SMALL, 65) * 6
    assert found.gflops == pytest.approx(found.chips_per_second * flops / 1e9)
    assert found.share == found.gflops / found.matrix_gflops


def test_it_prints_a_table_or_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(clay, "Geometry", lambda: SMALL)
    flags = ["--batches", "1,2", "--precisions", "float32", "--chip-size", "32", "--threads", "1"]
    tune.main(flags)
    assert "For the config:" in capsys.readouterr().out
    tune.main([*flags, "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert [s["batch"] for s in figures["speeds"]] == [1, 2]
    assert figures["best"]["precision"] == "float32"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batches", "none"], "--batches none: want whole numbers"),
        (["--precisions", "float32,int4"], "--precisions int4: want float32 or bfloat16 or int8"),
        (["--chip-size", "30"], "--chip-size 30: want a multiple of 8"),
    ],
)
def test_wrong_flags_are_said(flags: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        tune.main(flags)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_card_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main(["--device", "cuda"])
    assert "--device cuda: torch sees no card" in capsys.readouterr().err
