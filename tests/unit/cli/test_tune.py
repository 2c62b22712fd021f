"""`kiln tune`: the table, the recommendation, wrong flags."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from kiln.cli import tune
from kiln.model import tuning
from kiln.model.tuning import Speed
from kiln.model.tuning_file import read_rates

SPEEDS = [
    Speed("float32", 1, 0.50, 360.0, 400.0),
    Speed("float32", 8, 0.60, 430.0, 500.0),
    Speed("float32", 16, 0.605, 433.0, 500.0),
    Speed("bfloat16", 8, 0.20, 140.0, 150.0),
]


def test_int8_is_measured_and_not_recommended() -> None:
    rounded = Speed("int8", 8, 0.78, 560.0, 600.0)
    assert tuning.best([*SPEEDS, rounded]) == SPEEDS[1]
    assert tuning.best([rounded]) == rounded
    assert "int8 is 1.30 times as fast, and rounds." in tune.report([*SPEEDS, rounded], "cpu", 2)
    assert "and rounds" not in tune.report([*SPEEDS, replace(rounded, chips_per_second=0.5)], "cpu", 2)
    assert "and rounds" not in tune.report([rounded], "cpu", 2)


def test_the_table_ends_with_lines_for_the_config() -> None:
    text = tune.report(SPEEDS, "cpu", 2)
    head, _, second, *_ = text.splitlines()
    assert head.split() == ["precision", "batch", "chips/s", "Gflop/s", "matrices", "alone", "fraction"]
    assert second.split() == ["float32", "8", "0.6", "430", "500", "86%"]
    assert yaml.safe_load(text.partition("For the config:")[2]) == {
        "model": {"precision": "float32"},
        "resources": {"batch_size": 8, "embed_threads": 2, "device": "cpu"},
        "plan": {"chips_per_second": 0.6},
    }


def test_a_table_or_json_is_printed_and_rates_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"dim": 64, "depth": 6, "heads": 2, "mlp_ratio": 2}
    flags = ["--batches", "1,2", "--precisions", "float32", "--chip-size", "32", "--threads", "1"]
    flags += ["--untrained", json.dumps(sizes)]
    tune.main(flags)
    text = capsys.readouterr().out
    assert "For the config:" in text
    (file,) = Path("tuning").iterdir()
    assert f"written for `snakemake plan` in this folder: {file}" in text
    rates = read_rates(file)
    assert {(s.dim, s.depth, s.mlp, s.batch, s.chip_px, s.threads) for s in rates} == {
        (64, 6, 128, batch, 32, 1) for batch in (1, 2)
    }
    assert all(rate > 0 for rate in rates.values())
    tune.main([*flags, "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert [s["batch"] for s in figures["speeds"]] == [1, 2]
    assert figures["best"]["precision"] == "float32"


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--batches", "none"], "--batches: expected whole numbers above 0, as 4,8, got none."),
        (["--precisions", "float32,int4"], "--precisions: expected float32 or bfloat16 or int8, got int4"),
        (["--chip-size", "30"], "--chip-size: expected a multiple of 8, got 30"),
    ],
)
def test_wrong_flags_are_errors(flags: list[str], text: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        tune.main(flags)
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_a_missing_gpu_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        tune.main(["--device", "cuda"])
    assert "--device: expected a GPU that torch sees, got cuda" in capsys.readouterr().err
