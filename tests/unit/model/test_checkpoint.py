"""From a checkpoint at any path to verified safetensors: digests, downloads, untrained weights, errors."""

import hashlib
import json
import os
import subprocess
import sys

import boto3
import pytest
import torch

from kiln.io import storage
from kiln.model import weights
from kiln.model.identity import PRECISIONS, weights_digest
from scripts import encoder_weights
from tests.conftest import ROOT, UNTRAINED


def run(tmp_path, checkpoint, *more, output="encoder.safetensors"):
    flags = [
        "--checkpoint",
        str(checkpoint),
        "--scratch",
        str(tmp_path / "scratch"),
        "--output",
        str(tmp_path / output),
    ]
    encoder_weights.main([*flags, *more])
    return tmp_path / output


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_verified_checkpoint_becomes_safetensors_with_its_digest(
    tmp_path, checkpoint_file, checkpoint_sha256, precision
):
    encoder_file = run(tmp_path, checkpoint_file, "--sha256", checkpoint_sha256.upper(), "--precision", precision)
    about = weights.read_metadata(encoder_file)
    assert about["sha256"] == checkpoint_sha256
    assert (about["precision"], about["untrained"], about["checkpoint"]) == (precision, False, checkpoint_file.name)
    ours, theirs = (
        weights.load_encoder(encoder_file, precision=precision),
        weights.load_encoder(checkpoint_file, precision=precision),
    )
    assert ours.geometry == theirs.geometry
    state = theirs.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in ours.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.safetensors"]


def test_a_wrong_digest_is_an_error_that_shows_both_and_writes_nothing(
    tmp_path, checkpoint_file, checkpoint_sha256, capsys
):
    with pytest.raises(SystemExit) as e:
        run(tmp_path, checkpoint_file, "--sha256", "0" * 64)
    assert e.value.code == 1
    message = capsys.readouterr().err
    assert checkpoint_sha256 in message
    assert "0" * 64 in message
    assert not (tmp_path / "encoder.safetensors").exists()


def test_without_a_digest_the_config_line_is_printed_and_only_a_record_is_written(
    tmp_path, checkpoint_file, checkpoint_sha256, capsys
):
    encoder_file = run(tmp_path, checkpoint_file, output="digest.json")
    assert f"model:\n  sha256: {checkpoint_sha256}\n" in capsys.readouterr().out
    record = json.loads(encoder_file.read_text())
    assert record == {
        "checkpoint": str(checkpoint_file),
        "sha256": checkpoint_sha256,
        "size": checkpoint_file.stat().st_size,
    }
    assert [p.name for p in tmp_path.iterdir()] == ["digest.json"]


def test_a_missing_checkpoint_is_an_error(tmp_path, capsys, serve):
    for missing in ("/nowhere/clay.ckpt", f"{serve().url}/clay.ckpt"):
        with pytest.raises(SystemExit) as e:
            run(tmp_path, missing)
        assert e.value.code == 2
        assert f"model.checkpoint {missing}: " in capsys.readouterr().err


def test_a_verified_file_that_is_no_checkpoint_is_an_error_and_writes_nothing(tmp_path, capsys):
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"<html>")
    with pytest.raises(SystemExit) as e:
        run(tmp_path, other, "--sha256", hashlib.sha256(b"<html>").hexdigest())
    assert e.value.code == 1
    assert "other.ckpt" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["other.ckpt"]


def test_an_interrupted_download_is_resumed(tmp_path, monkeypatch, checkpoint_file, checkpoint_sha256, serve, capsys):
    monkeypatch.setattr(storage, "CHUNK_BYTES", 1 << 16)
    data = checkpoint_file.read_bytes()
    server = serve({"/v1.5/clay-v1.5.ckpt": data}, break_at=3_000_000)
    with pytest.raises(SystemExit) as e:
        run(tmp_path, f"{server.url}/v1.5/clay-v1.5.ckpt", "--sha256", checkpoint_sha256)
    assert e.value.code == 1
    assert "the connection broke" in capsys.readouterr().err
    have = (tmp_path / "scratch" / "clay-v1.5.ckpt").stat().st_size
    assert 3_000_000 - (1 << 16) < have <= 3_000_000
    server.break_at = None
    encoder_file = run(tmp_path, f"{server.url}/v1.5/clay-v1.5.ckpt", "--sha256", checkpoint_sha256)
    assert server.requests[-1] == ("GET", "/v1.5/clay-v1.5.ckpt", f"bytes={have}-")
    assert weights.read_metadata(encoder_file)["sha256"] == checkpoint_sha256


def test_a_finished_download_is_not_fetched_again(tmp_path, checkpoint_file, checkpoint_sha256, serve):
    server = serve({"/clay.ckpt": checkpoint_file.read_bytes()})
    run(tmp_path, f"{server.url}/clay.ckpt?download=true", output="digest.json")
    requests_before = len(server.requests)
    run(tmp_path, f"{server.url}/clay.ckpt?download=true", "--sha256", checkpoint_sha256)
    assert len(server.requests) == requests_before


def test_a_checkpoint_is_fetched_from_a_bucket_and_the_weights_are_written_there(
    tmp_path, bucket, checkpoint_file, checkpoint_sha256
):
    boto3.client("s3").upload_file(str(checkpoint_file), bucket.removeprefix("s3://"), "clay.ckpt")
    scratch = ["--scratch", str(tmp_path)]
    output = f"{bucket}/models/encoder.safetensors"
    flags = ["--checkpoint", f"{bucket}/clay.ckpt", "--sha256", checkpoint_sha256, "--output", output]
    encoder_weights.main([*flags, *scratch])
    with storage.local_copy(output) as path:
        assert weights.read_metadata(path)["sha256"] == checkpoint_sha256


# ----------------------------------------------------------------------------------------- untrained weights


def test_untrained_weights_are_logged_and_identified_by_seed_and_geometry(tmp_path, caplog):
    encoder_file = run(tmp_path, "untrained", "--untrained", json.dumps(UNTRAINED))
    assert "UNTRAINED weights, for demonstrations" in caplog.text
    about = weights.read_metadata(encoder_file)
    assert about["untrained"] is True
    assert about["sha256"] == weights_digest({"checkpoint": "untrained", "untrained": UNTRAINED})
    assert about["sha256"] != weights_digest({"checkpoint": "untrained", "untrained": UNTRAINED | {"seed": 4}})
    assert weights.load_encoder(encoder_file).geometry.dim == 32
    again = run(tmp_path, "untrained", "--untrained", json.dumps(UNTRAINED), output="again.safetensors")
    assert again.read_bytes() == encoder_file.read_bytes()


@pytest.mark.parametrize(
    "settings",
    [{}, UNTRAINED | {"heads": 3}, UNTRAINED | {"heads": 0}, UNTRAINED | {"dim": 8}, UNTRAINED | {"dim": 12}, [1]],
    ids=["none", "heads that do not divide", "no heads", "dim 8", "dim 12", "a list"],
)
def test_impossible_untrained_settings_are_an_error_of_one_line(tmp_path, capsys, settings):
    with pytest.raises(SystemExit) as e:
        run(tmp_path, "untrained", "--untrained", json.dumps(settings))
    assert e.value.code == 2
    assert "model.untrained" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- as a script


def test_help_does_not_import_torch():
    code = (
        "import sys, runpy; sys.argv = ['x', '--help']\n"
        "try: runpy.run_module('scripts.encoder_weights', run_name='__main__')\n"
        "except SystemExit as e: print('exit', e.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "--checkpoint" in done.stdout
    assert done.stdout.endswith("exit 0 False\n")


def test_a_full_disk_is_a_clear_error_and_leaves_no_file(tmp_path, checkpoint_file, checkpoint_sha256):
    output = tmp_path / "encoder.safetensors"
    code = (  # a limit on the size of files stands in for the disk
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from scripts.encoder_weights import main; main(sys.argv[1:])"
    )
    flags = ["--checkpoint", checkpoint_file, "--sha256", checkpoint_sha256, "--output", output]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, flags)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr
    assert str(output) in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
