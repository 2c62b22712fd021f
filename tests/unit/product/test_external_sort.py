"""The external sort: memory, types of vectors, and temporary files after an error."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kiln.archives.worldcover.lattice import Column
from kiln.errors import StorageError
from kiln.formats import vectors
from kiln.product import external_sort, part_writer
from tests import ROOT
from tests.support.merges import GRID, WIDE
from tests.support.products import digests, merge_shards, shard_metadata, write_shards

PEAK = """
import json, sys
from kiln.product.merge import MergeOptions, merge

options = MergeOptions(memory_bytes=32 << 20, row_group_rows=2048)
record = merge(json.loads(sys.argv[1]), sys.argv[2], sys.argv[2], sys.argv[3], options=options)
for line in open("/proc/self/status"):  # ru_maxrss would start with the value of the parent process
    if line.startswith("VmHWM"):
        print(json.dumps({"rows": record.rows, "peak": int(line.split()[1]) << 10}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_data(tmp_path):
    """Four times the vectors, 262 MB instead of 66, are sorted in nearly the same memory."""
    dim, columns = 1024, [Column(k, 0, 100) for k in range(160)]

    def vectors(chips):
        return np.random.default_rng(len(chips)).standard_normal((len(chips), dim), np.float32)

    _, names, folder = write_shards(tmp_path, columns=columns, per_shard=40, kiln=WIDE, vectors=vectors)
    for name in names:
        for copy in "abc":
            for end in (".parquet", ".ledger.parquet"):
                os.link(folder / f"{name}{end}", folder / f"{name}{copy}{end}")
    size = len(columns) * 100 * dim * 4
    peaks = []
    for chosen in (names, [f"{n}{copy}" for copy in ("", "a", "b", "c") for n in names]):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, json.dumps(chosen), str(folder), str(tmp_path / "out")],
            capture_output=True, text=True, cwd=ROOT, timeout=100,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["rows"] == len(chosen) * 40 * 100
        peaks.append(report["peak"])
    shutil.rmtree(tmp_path)
    assert peaks[1] - peaks[0] < 3 * size / 2


# ---------------------------------------------------------------------------------------- types and kinds of vectors


@pytest.mark.parametrize("vector_dtype", vectors.VECTOR_DTYPES)
@pytest.mark.parametrize("embedding", ["mean", "both"])
def test_vectors_of_every_type_and_kind_are_unchanged_with_their_scales(tmp_path, vector_dtype, embedding):
    kiln = shard_metadata(vector_dtype=vector_dtype, embedding=embedding, dimensions=64, patches={"shape": [2, 2, 64]})
    _, names, folder = write_shards(tmp_path, columns=GRID[:12], kiln=kiln, skip=lambda c, r: (c * r) % 5 == 1)
    seen = []
    for memory in (1, 200_000, 1 << 30):
        out = tmp_path / f"m{memory}"
        record = merge_shards(names, folder, str(out), memory=memory, row_group=50)
        seen.append(digests(out))
    assert seen[0] == seen[1] == seen[2]
    shards = (p for p in sorted(folder.glob("*.parquet")) if "ledger" not in p.name)
    before = pa.concat_tables(pq.read_table(p) for p in shards).sort_by("chip_id")
    after = pa.concat_tables(pq.read_table(f"{out}/{f['name']}") for f in record["files"]).drop_columns("stac_item")
    assert after.sort_by("chip_id").replace_schema_metadata(None).equals(before.replace_schema_metadata(None))
    assert after.schema.remove_metadata().equals(before.schema.remove_metadata())
    metadata = json.loads(after.schema.metadata[b"kiln"])
    assert (metadata["vector_dtype"], metadata["embedding"]) == (vector_dtype, embedding)
    assert "patches" not in metadata, "patches stay next to the shards"


def test_vectors_that_begin_within_a_buffer_are_sorted_correctly(tmp_path):
    """Batches end within row groups, so that vectors begin in the middle of their buffers."""
    _, names, folder = write_shards(tmp_path, columns=GRID[:9], kiln=shard_metadata(vector_dtype="int8"), row_group=70)
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 9_000, 64 << 20):
            patch.setattr(external_sort, "READ_BYTES", size)
            merge_shards(names, folder, f"{tmp_path}/o{size}", memory=1, row_group=40)
    assert digests(tmp_path / "o1") == digests(tmp_path / "o9000") == digests(tmp_path / f"o{64 << 20}")


def test_an_error_leaves_no_temporary_file_or_thread(tmp_path, monkeypatch):
    _, names, folder = write_shards(tmp_path, columns=GRID[:8])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(part_writer.GeoParquetWriter, "write", lambda *a: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StorageError, match="No space left"):
        merge_shards(names, folder, str(tmp_path / "o"), memory=1, row_group=40)
    assert not list(scratch.iterdir())
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_a_disk_without_direct_writes_gets_the_same_bytes(tmp_path, monkeypatch):
    _, names, folder = write_shards(tmp_path, columns=GRID[:6], kiln=shard_metadata(vector_dtype="float16"))
    merge_shards(names, folder, str(tmp_path / "direct"), memory=1, row_group=40)
    opened, refused = os.open, []

    def refuse_direct(path, flags, *args, **options):
        if flags & getattr(os, "O_DIRECT", 0):
            refused.append(path)
            raise OSError(22, "Invalid argument")
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", refuse_direct)
    merge_shards(names, folder, str(tmp_path / "plain"), memory=1, row_group=40)
    assert refused
    assert digests(tmp_path / "plain") == digests(tmp_path / "direct")
