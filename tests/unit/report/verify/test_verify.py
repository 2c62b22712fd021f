"""Verification of runs: damage of any file is found and named, and what is printed makes the run whole."""

import gzip
import json
import random
import shutil
from pathlib import Path

import pytest

import kiln
from kiln.cli import verify as command
from kiln.errors import ConfigError
from kiln.formats import parquet
from kiln.io import storage
from kiln.report.verify.run import delete_damaged, verify
from tests.support.verified_runs import FOLDER, VerifiedRun, damaged, upload, write_run

ROUNDS = 6
FRACTION = 0.3  # of the files that are damaged in a round


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("verified"))


@pytest.fixture
def run(intact):
    """Yield the run; its files are put back after the test. The cache knows the database by its place."""
    before = {path: path.read_bytes() for path in intact.files()}
    yield intact
    for path in set(intact.files()) - set(before):
        path.unlink()
    for path, data in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def content(path):
    """Return what readers take from a file: of some formats, a few bytes mean nothing."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".parquet":
        rows = parquet.read_table(path)
        return rows.to_pylist(), rows.schema.metadata
    return path.read_bytes()


def names(finding, path):
    """Return whether a finding is about a file: itself, its folder, or the record by which it is judged."""
    if finding.file.endswith(".jsonl.gz") and path.suffix == ".json":  # names are compared with an intact plan
        return str(path) in finding.delete
    folders = (f"{finding.file}/", f"{finding.file.removesuffix('.json')}/")
    return str(path) == finding.file or str(path).startswith(folders)


def test_an_intact_run_has_no_finding(run, capsys):
    result = run.verify()
    assert result.is_intact, result.findings
    assert result.files > 15
    assert result.commands == []
    command.main([str(run.run), "--cache", str(run.cache)])
    assert f"{run.run}: {result.files} files are intact" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_every_damaged_file_is_named(run, seed):
    """Some files at a time. A file is passed over only if readers get from it what was written."""
    paths = random.Random(seed).sample(run.files(), k=int(FRACTION * len(run.files())))
    written = {path: (content(path), path.read_bytes()) for path in paths}
    for path in paths:
        path.write_bytes(damaged(path.read_bytes(), (seed, path.name, path.parent.name)))
    result = run.verify()
    found = [path for path in paths if any(names(finding, path) for finding in result.findings)]
    for path in set(paths) - set(found):
        assert content(path) == written[path][0], f"{path} is damaged and no finding names it"
    assert len(found) > len(paths) // 2
    harmed = {finding.file for finding in result.findings}
    if any(path.name == "collection.json" for path in paths):
        harmed.discard(str(run.run / "catalog.json"))  # it is compared with the collections
    innocent = [file for file in harmed if not any(names_either_way(file, path) for path in paths)]
    assert innocent == [], "findings name damaged files only"


def names_either_way(file, path):
    stem = file.partition(".")[0]
    return str(path).startswith(stem) or file.startswith(str(path).partition(".")[0])


def test_every_kind_of_file_is_verified(run):
    """Each file alone, with noise in its middle, is found."""
    for path in run.files():
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(b ^ 0x55 for b in data[middle : middle + 40]) + data[middle + 40 :])
        if path.suffix != ".parquet" or not is_readable_equal(path, data):
            findings = run.verify().findings
            assert any(names(finding, path) for finding in findings), path
            assert all(finding.delete for finding in findings)
        path.write_bytes(data)


def is_readable_equal(path, data):
    damaged_bytes = path.read_bytes()
    try:
        found = content(path)
    except kiln.errors.SourceError:
        return False
    path.write_bytes(data)
    same = found == content(path)
    path.write_bytes(damaged_bytes)
    return same


def test_after_the_cure_the_run_is_whole(run):
    """Delete what is named, make it as the rules do, and verify again."""
    first = next(path for path in run.files() if "/products/2020/" in str(path) and path.name == "part-0000.parquet")
    second = next(path for path in run.files() if path.suffix == ".lance")
    third = next(path for path in run.files() if path.name == "ledger.html")
    before = {path: path.read_bytes() for path in run.files() if run.cache not in path.parents}
    for path in (first, second, third):
        path.write_bytes(damaged(path.read_bytes(), "cure")[:-1])
    result = run.verify()
    assert len(result.findings) == 3
    deleted = delete_damaged(result)
    assert not any(Path(file).exists() for file in deleted)
    assert not (run.run / "explorer").exists(), "a table without some of its files would be grown, not made"
    records = [run.merge(year) for year in (2020, 2021)]
    run.index(records)
    run.report(records)
    assert run.verify().is_intact
    assert {path for path in before if "/explorer/" not in str(path)} <= set(run.files())
    assert first.read_bytes() == before[first]


def test_the_printed_commands(run, capsys):
    (weights,) = (run.top / "results/models").iterdir()
    weights.write_bytes(damaged(weights.read_bytes(), 1))
    with pytest.raises(SystemExit) as e:
        command.main([str(run.run), "--cache", str(run.cache)])
    out = capsys.readouterr().out
    assert e.value.code == 1
    assert f"{run.run}: 1 damaged of " in out
    assert f"\n{weights}: " in out
    place = f"--cores all --directory {run.top}"
    assert (
        out.endswith(
            f"  kiln verify {run.run} --delete\n"
            f"  snakemake {place} --config run=tiny -- encoder_weights\n"
            f"  snakemake {place} --config run=tiny\n"
        )
        or [line.strip() for line in out.splitlines()[-3:]] == run.verify().commands
    )
    assert weights.exists()
    with pytest.raises(SystemExit):
        command.main([str(run.run), "--cache", str(run.cache), "--delete"])
    assert not weights.exists()
    assert f"deleted {weights}" in capsys.readouterr().out


def test_json_for_programs(run, capsys):
    shard = next((run.folder / "shards/2021").glob("*[0-9a-f].parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(SystemExit):
        command.main([str(run.run), "--cache", str(run.cache), "--json"])
    (result,) = json.loads(capsys.readouterr().out)
    (finding,) = result["damaged"]
    assert finding["file"] == str(shard)
    assert finding["delete"] == [str(shard), str(shard).replace(".parquet", ".ledger.parquet")]
    assert result["commands"][0] == f"kiln verify {run.run} --delete"


def test_a_ledger_of_another_shard_is_found(run):
    one, other = sorted((run.folder / "shards/2021").glob("*.ledger.parquet"))[:2]
    shutil.copy(sorted((run.folder / "shards/2020").glob("*.ledger.parquet"))[0], other)
    one.unlink()
    problems = {finding.file: finding.problem for finding in run.verify().findings}
    assert problems.pop(str(one)) == "expected a ledger, got no file."
    assert problems == {}, "a ledger with equal numbers is as good, since no file states its year"


def test_a_shard_with_rows_that_its_ledger_does_not_have_is_found(run):
    one, other = sorted(p for p in (run.folder / "shards/2021").glob("*.parquet") if ".ledger" not in p.name)[:2]
    table = parquet.read_table(one)
    parquet.write_table(table.slice(0, 5), one)
    parquet.write_table(parquet.read_table(other).take([0] * 18), other)
    problems = {finding.file: finding.problem for finding in run.verify().findings}
    ledger = str(one).replace(".parquet", ".ledger.parquet")
    assert problems[ledger] == "expected 5 embedded chips as in the shard, got 18."
    assert problems[str(other)] == "expected 18 different chips, got 1."


def test_a_shard_of_other_settings_is_found(run):
    moved = run.folder.with_name("worldcover-00000000")
    shutil.copytree(run.folder / "shards", moved / "shards")
    try:
        problems = {finding.problem for finding in run.verify().findings}
    finally:
        shutil.rmtree(moved)
    assert problems == {"expected the fingerprint of its folder, got f1f1f1f1."}


def test_names_of_another_plan_are_found(run):
    path = run.folder / "plan-1a2b3c4d.json"
    path.write_text(json.dumps({"2020": []}))
    (finding,) = run.verify().findings
    assert finding.file == str(path)
    assert set(finding.delete) == {str(path), str(path).replace(".json", ".jsonl.gz")}


def test_a_run_on_s3_is_verified_in_place(run, bucket, tmp_path):
    uri = upload(run, bucket)
    cache = tmp_path / "cache"
    assert verify(uri, cache=cache).is_intact
    part = next(path for path in run.files() if path.name == "part-0000.parquet")
    ledger = next((run.folder / "shards/2020").glob("*.ledger.parquet"))
    addresses = [f"{bucket}/{path.relative_to(run.top)}" for path in (part, ledger)]
    for path, address in zip((part, ledger), addresses, strict=True):
        data = path.read_bytes()
        storage.write_bytes(address, data[:300] + bytes(40) + data[340:])
    result = kiln.verify(uri, cache=cache)
    assert sorted(finding.file for finding in result.findings) == sorted(addresses)
    assert result.commands[0] == f"kiln verify {uri} --delete"
    assert f"--default-storage-prefix {bucket}" in result.commands[1]
    delete_damaged(result)
    assert storage.stat(addresses[1]) is None


def test_an_address_without_a_run_is_refused(tmp_path, bucket):
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        verify(tmp_path)
    with pytest.raises(ConfigError, match="expected the files of a run, got none"):
        verify(f"{bucket}/results/none")


def test_the_folder_of_the_run_is_that_of_its_shards(intact):
    assert isinstance(intact, VerifiedRun)
    assert intact.folder.name == FOLDER
