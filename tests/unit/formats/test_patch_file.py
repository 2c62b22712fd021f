"""Files of patch vectors."""

import numpy as np
import pyarrow.parquet as pq

from kiln.formats import patch_file as patches


def test_row_groups_of_patches_depend_on_the_rows_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(patches, "ROW_GROUP_BYTES", 3 * 16 * 2)
    columns = patches.schema({"patches": {"shape": [2, 2, 4]}})
    block = np.arange(10 * 16, dtype=np.float16).reshape(10, 16)
    ids = [f"c{n}" for n in range(10)]
    seen = set()
    for cuts in ([10], [1] * 10, [2, 5, 3], [3, 3, 3, 1]):
        with patches.PatchWriter(tmp_path / "p", columns) as out:
            first = 0
            for count in cuts:
                out.append(ids[first : first + count], block[first : first + count])
                first += count
        seen.add((tmp_path / "p").read_bytes())
    assert len(seen) == 1
    file = pq.ParquetFile(tmp_path / "p")
    assert [file.metadata.row_group(n).num_rows for n in range(4)] == [3, 3, 3, 1]
    read = list(patches.read_patches(tmp_path / "p"))
    assert [c for some, _ in read for c in some] == ids
    assert np.array_equal(np.concatenate([b for _, b in read]), block)
