"""A run with a checkpoint in the published layout: it is fetched and pinned, and products name its digest."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from tests.support.server import FileServer
from tests.workflow.workflow import finished_jobs, fresh


def test_checkpoint_is_fetched_printed_pinned_and_traceable(
    tmp_path: Path, serve: Callable[..., FileServer], checkpoint_file: Path
) -> None:
    data = checkpoint_file.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    server = serve({"/clay-v1.5.ckpt": data})
    model = {"checkpoint": f"{server.url}/clay-v1.5.ckpt"}
    run = fresh(tmp_path / "run", {"model": model})
    assert "model.sha256: expected the checkpoint's digest" in run.snakemake("--cores", "1", check=False)
    output = run.snakemake("--cores", "1", "encoder_weights")
    assert f"sha256: {sha256}" in output
    assert not list(run.folder.glob("results/models/*.safetensors")), "nothing is made of weights without a digest"
    asked = len(server.requests)

    run.configure({"model": {**model, "sha256": "f" * 64}})
    output = run.snakemake("--cores", "1", "encoder_weights", check=False)
    assert sha256 in output, "what was found"
    assert f"expected sha256 {'f' * 64} (model.sha256)" in output
    assert not list(run.folder.glob("results/models/*.safetensors"))

    run.configure({"model": {**model, "sha256": sha256}})
    done = finished_jobs(run.snakemake("--cores", "2", "worldcover"))
    assert done["encoder_weights"] == 1
    assert len(server.requests) == asked, "the download was kept"
    assert (run.folder / f"results/models/{sha256[:8]}-float32.safetensors").is_file()
    kiln = json.loads(pq.read_schema(run.shards()[0]).metadata[b"kiln"])
    assert (kiln["weights_sha256"], kiln["untrained"], kiln["checkpoint"]) == (sha256, False, "clay-v1.5.ckpt")
    assert "Nothing to be done" in run.snakemake("-n", "worldcover")
