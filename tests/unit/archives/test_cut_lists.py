"""Lists that were cut off: no plan of fewer units without an error. One without a last end of line may be complete."""

import gzip
import json

import pytest

from kiln.archives.sentinel2.config import Config as Sentinel2Config
from kiln.archives.sentinel2.plan import list_items
from kiln.errors import ConfigError, TransientError
from tests.support import plans
from tests.support.naip_plans import manifest_text, plan_bytes, refusal, scene_keys, write_file, zipped
from tests.support.sentinel2_plans import item_document, key, write_archive

KEYS = scene_keys(20)
OTHERS = [k.replace("rgbir_cog", "fgdc").replace(".tif", ".txt") for k in KEYS]
COMPLETE = manifest_text([*KEYS, *OTHERS])
ADVICE = "Download it again. If it is complete, end its last line."
ITEMS = ["S2A_29RKH_20200219_0_L2A", "S2B_29RKH_20200224_0_L2A"]


def planned(tmp_path, data):
    return plans.units(plan_bytes(write_file(tmp_path, data), tmp_path / "plan.gz"))


@pytest.mark.parametrize("data", [COMPLETE, COMPLETE[:-1], manifest_text(KEYS)[:-1], COMPLETE + b"  "])
def test_a_complete_manifest_needs_no_last_end_of_line(tmp_path, data):
    assert planned(tmp_path, data) == sorted(KEYS)


@pytest.mark.parametrize("removed", [*range(2, len(OTHERS[-1])), 1 + len(OTHERS[-1]) + 4])
def test_a_manifest_that_is_cut_off_in_a_line_is_refused(tmp_path, removed):
    data = COMPLETE[:-removed]
    message = refusal(write_file(tmp_path, data), tmp_path)
    last = data.decode().splitlines()[-1]
    assert f"expected a complete list, got {last[:80]!r} as its last line, without an end of line" in message
    assert message.endswith(ADVICE)


@pytest.mark.parametrize("pack", [gzip.compress, zipped])
def test_a_manifest_that_was_packed_after_it_was_cut_off_is_refused(tmp_path, pack):
    assert ADVICE in refusal(write_file(tmp_path, pack(COMPLETE[:-9]), "m"), tmp_path)


def test_a_remote_manifest_that_is_cut_off_at_an_end_of_line_is_noticed_by_its_length(tmp_path, serve):
    server = serve({"/manifest.txt": COMPLETE}, break_at=len(manifest_text(KEYS)))
    refusal(f"{server.url}/manifest.txt", tmp_path, TransientError)


def test_zeros_at_the_end_of_a_download_that_was_not_finished_are_refused(tmp_path):
    assert "without an end of line" in refusal(write_file(tmp_path, manifest_text(KEYS) + bytes(5000)), tmp_path)


def write_items(tmp_path, lines, end):
    """Write an archive of items and a list of them with another end."""
    archive = write_archive(tmp_path / "archive", [item_document(i) for i in ITEMS])
    path = tmp_path / "items.txt"
    path.write_text("\n".join(lines) + end)
    return Sentinel2Config(items=str(path), archive=archive)


@pytest.mark.parametrize("end", ["", "\n", "\n# the end", "\n  "])
def test_a_complete_list_of_items_needs_no_last_end_of_line(tmp_path, end):
    assert sorted(list_items(write_items(tmp_path, map(key, ITEMS), end)).ids()) == ITEMS


@pytest.mark.parametrize("removed", [*range(1, 12), 40, len(key(ITEMS[1])) - 1])
def test_a_list_of_items_that_is_cut_off_in_a_line_is_refused(tmp_path, removed):
    lines = [key(ITEMS[0]), key(ITEMS[1])[:-removed]]
    with pytest.raises(ConfigError) as error:
        list_items(write_items(tmp_path, lines, ""))
    shown = repr(lines[1][:80] + ("..." if len(lines[1]) > 80 else ""))
    assert str(error.value) == (
        f"items {tmp_path}/items.txt: expected a complete list, got {shown} as its last line, without an end of line "
        f"(no item). {ADVICE}"
    )


def test_an_overlong_last_line_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="without an end of line"):
        list_items(write_items(tmp_path, [key(ITEMS[0]), "x" * 5000], ""))


def test_the_last_address_of_another_layout_counts_as_complete_if_it_is_an_item(tmp_path, serve):
    documents = {f"/items/{i}": json.dumps(item_document(i)).encode() for i in ITEMS}
    server = serve(documents | {"/items": json.dumps({"type": "FeatureCollection", "features": []}).encode()})
    addresses = [f"{server.url}{path}" for path in documents]
    assert sorted(list_items(write_items(tmp_path, addresses, "")).ids()) == ITEMS
    with pytest.raises(
        ConfigError, match=r"as its last line, without an end of line \(.*S2B_29RKH: the server answers 404 Not Found\)"
    ):
        list_items(write_items(tmp_path, [addresses[0], addresses[1][: -len("_20200224_0_L2A")]], ""))
    with pytest.raises(ConfigError, match=r"without an end of line \(.*not a Feature"):
        list_items(write_items(tmp_path, [addresses[0], f"{server.url}/items"], ""))
    with pytest.raises(ConfigError, match=r"without an end of line \(no item\)"):
        list_items(write_items(tmp_path, [addresses[0], "sentinel-s2-l2a-c"], ""))
    assert list_items(write_items(tmp_path, [addresses[0], addresses[1][:-5]], "\n")).ids() == [ITEMS[0]]
