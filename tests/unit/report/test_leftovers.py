"""Leftovers of a run: files that no shard, record or plan stands for."""

from pathlib import Path

from kiln.report.leftovers import delete_leftovers, find_leftovers

DATASET, OTHER, PRODUCT, DATABASE = "naip-1a2b3c4d", "naip-99999999", "0123456789abcdef", "fedcba9876543210"
NEEDED = [
    f"results/sample/{DATASET}/plan-1.jsonl.gz",
    f"results/sample/{DATASET}/shards/nd-2019/a.parquet",
    f"results/sample/{DATASET}/shards/nd-2019/a.ledger.parquet",
    f"results/sample/{DATASET}/shards/nd-2019/a.patches.parquet",
    f"results/sample/{DATASET}/products/nd-2019/{PRODUCT}.json",
    f"results/sample/{DATASET}/products/nd-2019/{PRODUCT}/chips/part-0000.parquet",
    f"results/sample/{DATASET}/products/nd-2019/{PRODUCT}/items/one.json",
    f"results/sample/index/{DATABASE}.json",
    f"results/sample/pictures/{DATABASE}/coverage.png",
    "results/sample/explorer/chips.lance/data/1.lance",
    f"results/sample/runs/{DATASET}.json",
    f"results/sample/runs/jobs/{DATASET}/nd-2019/a.json",
    "results/sample/catalog.json",
    "results/sample/notes of a person.txt",
    f"results/other/{DATASET}/shards/nd-2019/b.ledger.parquet",
    f"checkpoints/sample/{DATASET}/nd-2019/b/1.parquet",
]
LEFTOVERS = [
    f"results/sample/{DATASET}/shards/nd-2019/b.ledger.parquet",
    f"results/sample/{DATASET}/shards/nd-2019/b.patches.parquet",
    f"results/sample/{DATASET}/products/nd-2019/aaaaaaaaaaaaaaaa/chips/part-0000.parquet",
    f"results/sample/{DATASET}/products/nd-2019/aaaaaaaaaaaaaaaa/items/one.json",
    "results/sample/pictures/aaaaaaaaaaaaaaaa/coverage.png",
    f"results/sample/runs/{OTHER}.json",
    f"results/sample/runs/jobs/{DATASET}/nd-2019/b.json",
    f"checkpoints/sample/{OTHER}/nd-2019/b/1.parquet",
]


def write(files: list[str]) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(file)


def files_below(top: Path) -> list[str]:
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if path.is_file())


def test_leftovers_are_found_and_needed_files_are_not(here: Path) -> None:
    write(NEEDED + LEFTOVERS)
    found = find_leftovers("results/sample/", "checkpoints/sample")
    assert found == sorted(LEFTOVERS)
    delete_leftovers(found, ["results/sample", "checkpoints/sample"])
    assert files_below(here) == sorted(NEEDED)
    assert not Path(f"results/sample/{DATASET}/products/nd-2019/aaaaaaaaaaaaaaaa").exists()


def test_without_its_record_a_database_is_a_leftover(here: Path) -> None:
    write([file for file in NEEDED if "/index/" not in file])
    assert find_leftovers("results/sample", "checkpoints/sample") == [
        "results/sample/explorer/chips.lance/data/1.lance",
        f"results/sample/pictures/{DATABASE}/coverage.png",
    ]


def test_a_run_that_does_not_exist_has_no_leftovers(here: Path) -> None:
    assert find_leftovers("results/none", "checkpoints/none") == []
    delete_leftovers([], ["results/none", "checkpoints/none"])
