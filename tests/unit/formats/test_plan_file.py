"""Tests of kiln.formats.plan_file: a plan that is not as it was written is refused, with its line."""

import gzip
import json
from dataclasses import asdict, replace

import pytest

from kiln.errors import ConfigError
from kiln.formats import plan_file
from kiln.formats.fingerprint import shard_name
from kiln.formats.plan_file import ShardPlan, pick_shard, read_names, read_plan, write_plan

UNITS = ("a", "b")
SHARD = ShardPlan("naip", "nd-2019", shard_name("0.0", UNITS), UNITS, 256, 10, 2000, "s3://naip", {"tiles": ["x", "y"]})
OTHER = ShardPlan("naip", "sd-2018", shard_name("1.1", ("c",)), ("c",), 256, 5, 1000, "s3://naip")
AGAIN = "Make the plan again."


@pytest.fixture
def plan(tmp_path):
    """Return the path of a plan of two shards."""
    write_plan([SHARD, OTHER], str(tmp_path / "plan.gz"), str(tmp_path / "plan.json"))
    return tmp_path / "plan.gz"


def lines_of(plan):
    return gzip.decompress(plan.read_bytes()).splitlines(keepends=True)


def refusal(plan, *lines):
    """Return the error of a plan of these lines."""
    plan.write_bytes(gzip.compress(b"".join(lines)))
    with pytest.raises(ConfigError) as error:
        list(read_plan(str(plan)))
    return str(error.value)


def older_line(**changes):
    """Return a line without a digest, as plans had; `None` leaves a key out."""
    values = asdict(SHARD) | changes
    return (json.dumps({key: value for key, value in values.items() if value is not None}) + "\n").encode()


def test_a_plan_returns_what_was_written(plan):
    assert list(read_plan(str(plan))) == [SHARD, OTHER]
    assert list(read_plan(str(plan), "sd-2018")) == [OTHER]
    assert pick_shard(str(plan), name=OTHER.name) == pick_shard(str(plan), index=1) == OTHER
    assert pick_shard(str(plan), index=2) is None


def test_a_plan_whose_lines_have_no_digest_is_read(plan):
    plan.write_bytes(gzip.compress(older_line()))
    assert list(read_plan(str(plan))) == [SHARD]
    assert list(read_plan(str(plan), "sd-2018")) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"chip_size": 256', b'"chip_size": 128'),
        (b'["x", "y"]', b'["x"]'),
        (b'"s3://naip"', b'"s3://other"'),
        (b'"nd-2019"', b'"nd-2018"'),
        (b'"digest": "', b'"digest": "0'),
    ],
)
def test_a_line_that_was_changed_is_refused_by_every_reader(plan, old, new):
    changed = [line.replace(old, new) if b"nd-2019" in line else line for line in reversed(lines_of(plan))]
    message = refusal(plan, *changed)
    assert message == f"{plan}, line 2: expected a shard of a plan (it does not fit its digest). {AGAIN}"
    for ask in ({"partition": "nd-2019"}, {"name": SHARD.name}):
        with pytest.raises(ConfigError, match=r"line 2: .*does not fit its digest"):
            list(read_plan(str(plan), **ask))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"units": ["a"]}, "expected a name that ends in the digest of its units, "),
        ({"units": ["b", "a"]}, "expected a name that ends in the digest of its units"),
        ({"units": []}, "expected a name that ends in the digest of its units"),
        ({"units": [], "name": shard_name("x", ())}, "units: expected one or more, got none"),
        ({"units": None}, "units: expected a value, got none"),
        ({"units": "ab"}, "units: expected a list, got 'ab'"),
        ({"units": ["a", 5]}, "units.1: expected text, got 5"),
        ({"name": f"../../{SHARD.name}"}, f"expected a plain file name, got '../../{SHARD.name}'"),
        ({"name": f"/tmp/{SHARD.name}"}, "expected a plain file name"),
        ({"name": ".."}, "expected a plain file name"),
        ({"name": f"{SHARD.name}\n"}, "expected a plain file name"),
        ({"name": "s0"}, "shard s0: expected a name that ends in the digest of its units"),
        ({"name": 3}, "name: expected text, got 3"),
        ({"partition": "../nd"}, "expected a plain file name, got '../nd'"),
        ({"dataset": ""}, "expected a plain file name, got ''"),
        ({"chip_size": "256"}, "chip_size: expected a whole number, got '256'"),
        ({"chip_size": 256.0}, "chip_size: expected a whole number, got 256.0"),
        ({"chip_size": True}, "chip_size: expected a whole number, got True"),
        ({"chip_size": 0}, "chip_size: expected 1 to 65536, got 0"),
        ({"chip_size": 1 << 60}, "chip_size: expected 1 to 65536"),
        ({"expected": -1}, "expected: expected 0 to"),
        ({"read_bytes": 10**300}, "read_bytes: expected 0 to"),
        ({"archive": ["s3://naip"]}, "archive: expected text"),
        ({"details": [1]}, "details: expected an object, got [1]"),
        ({"further": 1}, "further: expected no such key, got 1"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_its_line(plan, changes, problem):
    message = refusal(plan, lines_of(plan)[1], older_line(**changes))
    assert message.startswith(f"{plan}, line 2: expected a shard of a plan (")
    assert problem in message
    assert message.endswith(f"). {AGAIN}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{\n", "expected JSON, got EOF"),
        (b"\n", "expected JSON"),
        (b"null\n", "expected an object, got None"),
        (b"\xff\xfe\n", "expected JSON"),
        (b'{"a":' * 200_000 + b"\n", "recursion limit"),
        (older_line()[:-1], "its end is missing"),
        (older_line()[:-9], "its end is missing"),
    ],
    ids=["cut JSON", "empty", "null", "no UTF-8", "deeply nested", "no line end", "cut"],
)
def test_a_line_that_is_no_json_object_is_named(plan, line, problem):
    message = refusal(plan, lines_of(plan)[1], line)
    assert (f"{plan}, line 2: " in message, problem in message) == (True, True), message


def test_a_line_without_end_is_not_read_into_memory(plan, monkeypatch):
    monkeypatch.setattr(plan_file, "MAX_LINE_BYTES", 1000)
    assert "line 1: expected a shard of a plan (more than 1,000 bytes)" in refusal(plan, b" " * 100_000)


def test_a_file_that_is_no_gzip_or_was_cut_is_damaged(plan):
    data = plan.read_bytes()
    for damaged in (data[:-5], data[: len(data) // 2], b"{}\n", data[:40] + bytes(8) + data[48:], b"\x1f\x8b"):
        plan.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"expected a plan, got a damaged file .*Make the plan again"):
            list(read_plan(str(plan)))


def test_a_shard_whose_name_does_not_end_in_the_digest_of_its_units_is_not_written(tmp_path):
    for name in ("x", f"../{SHARD.name}", shard_name("x", ("c",))):
        with pytest.raises(ConfigError, match="Correct the plan of the archive naip"):
            write_plan([replace(SHARD, name=name)], str(tmp_path / "plan.gz"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [b"", b"[]", b"3", b'{"a": "xyz"}', b'{"a": [1]}', b'{"a": ["../x"]}', b'{"../a": []}', b"\xff", b"[" * 100_000],
)
def test_a_damaged_file_of_names_is_refused(plan, text):
    names = plan.with_suffix(".json")
    assert read_names(str(names)) == {"nd-2019": [SHARD.name], "sd-2018": [OTHER.name]}
    names.write_bytes(text)
    with pytest.raises(ConfigError, match=r"plan\.json: expected the names of a plan's shards .*Make the plan again"):
        read_names(str(names))
