"""NAIP manifests that are empty, damaged, missing or refused: an error and no plan."""

import gzip
import io
import zipfile

import numpy as np
import pytest

from kiln.errors import TransientError
from tests.support import plans
from tests.support.naip_plans import (
    MIXED,
    manifest_text,
    plan_bytes,
    refusal,
    scene_keys,
    write_file,
    zipped,
)


def test_an_empty_manifest_is_refused(tmp_path):
    assert "got none in 0 lines" in refusal(write_file(tmp_path, b""), tmp_path)
    assert "got none in 0 lines" in refusal(write_file(tmp_path, gzip.compress(b"")), tmp_path)


def test_a_manifest_without_a_scene_is_refused_with_its_number_of_lines(tmp_path):
    lines = [k.replace("rgbir_cog", "rgb") for k in scene_keys(3000)]
    message = refusal(write_file(tmp_path, manifest_text(lines)), tmp_path)
    assert "manifest.txt: expected keys of NAIP scenes, got none in 3,000 lines. Check the file." in message


@pytest.mark.parametrize("page", [b"<html>\n<body>Sign in</body>\n</html>\n", b"{}", b"\n" * 50])
def test_a_page_of_a_proxy_instead_of_the_manifest_is_refused(tmp_path, page):
    assert "expected keys of NAIP scenes, got none" in refusal(write_file(tmp_path, page), tmp_path)


def test_random_bytes_are_refused_with_a_short_log(tmp_path, caplog):
    caplog.set_level("INFO")
    manifest = write_file(tmp_path, b"\x00" + np.random.default_rng(0).bytes(1 << 20))
    assert "expected keys of NAIP scenes, got none" in refusal(manifest, tmp_path)
    assert len(caplog.text) < 10_000


@pytest.mark.parametrize("left", [5, 200, -9, -4, -1])
def test_a_truncated_gzip_is_reported_as_truncated(tmp_path, left):
    manifest = write_file(tmp_path, gzip.compress(manifest_text(MIXED))[:left], "m.gz")
    assert "m.gz: truncated or damaged" in refusal(manifest, tmp_path)


def test_a_gzip_with_a_flipped_bit_or_trailing_rubbish_is_reported_as_damaged(tmp_path):
    data = bytearray(gzip.compress(manifest_text(MIXED)))
    rubbish = write_file(tmp_path, bytes(data) + b"rubbish", "m.gz")
    assert "m.gz: truncated or damaged" in refusal(rubbish, tmp_path)
    data[len(data) // 2] ^= 0x10
    assert "m.gz: truncated or damaged" in refusal(write_file(tmp_path, bytes(data), "m.gz"), tmp_path)


def test_a_truncated_or_damaged_zip_is_reported_as_damaged(tmp_path):
    data = bytearray(zipped(manifest_text(MIXED)))
    assert "m.zip: truncated or damaged" in refusal(write_file(tmp_path, bytes(data[:-60]), "m.zip"), tmp_path)
    data[200] ^= 0x10
    assert "m.zip: truncated or damaged" in refusal(write_file(tmp_path, bytes(data), "m.zip"), tmp_path)


def test_a_zip_that_needs_a_password_or_an_unknown_method_is_refused(tmp_path):
    data = zipped(manifest_text(MIXED))
    central = data.index(b"PK\x01\x02")
    secret, method = bytearray(data), bytearray(data)
    secret[6] |= 1
    secret[central + 8] |= 1
    method[8] = method[central + 10] = 99
    for bad in (secret, method):
        assert "m.zip" in refusal(write_file(tmp_path, bytes(bad), "m.zip"), tmp_path)


def test_an_empty_zip_is_refused(tmp_path):
    out = io.BytesIO()
    zipfile.ZipFile(out, "w").close()
    assert "m.zip" in refusal(write_file(tmp_path, out.getvalue(), "m.zip"), tmp_path)


def test_the_manifest_is_found_in_a_zip_that_begins_with_a_folder(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("naip/", "")
        z.writestr("naip/manifest.txt", manifest_text(MIXED))
    assert sorted(
        plans.units(plan_bytes(write_file(tmp_path, out.getvalue(), "m.zip"), tmp_path / "plan.gz"))
    ) == sorted(MIXED)


def test_a_line_of_10_mb_and_binary_bytes_lose_no_scene(tmp_path):
    keys = scene_keys(20)
    rubbish = b"nd/2014/" + b"a" * 10_000_000 + b".tif\n"
    data = manifest_text(keys[:9]) + rubbish + b"\xff\xfe\x00\x80\n" + manifest_text(keys[9:])
    assert plans.units(plan_bytes(write_file(tmp_path, data), tmp_path / "plan.gz")) == sorted(keys)


def test_filters_that_leave_nothing_are_refused(tmp_path):
    manifest = write_file(tmp_path, manifest_text(MIXED))
    for keys in ({"states": ["tx"]}, {"years": [2001]}, {"resolutions": [30]}, {"bbox": [0, 0, 1, 1]}):
        assert "the filters leave none of 160 scenes" in refusal(manifest, tmp_path, **keys)


def test_a_missing_manifest_is_reported_as_missing(tmp_path, serve, bucket):
    web = serve({})
    for manifest in (str(tmp_path / "none.txt"), f"{web.url}/none.txt", f"{bucket}/none.txt"):
        assert f"{manifest}: does not exist" in refusal(manifest, tmp_path)


def test_an_unknown_kind_of_storage_is_refused(tmp_path):
    refusal("gs://somewhere/manifest.txt", tmp_path)


def test_a_refusing_server_is_a_config_error_and_a_busy_or_broken_one_is_transient(tmp_path, serve):
    files = {"/manifest.txt": manifest_text(MIXED)}
    refusing, busy, breaking = serve(files, status=403), serve(files, status=503), serve(files, break_at=300)
    assert "403" in refusal(f"{refusing.url}/manifest.txt", tmp_path)
    assert "503" in refusal(f"{busy.url}/manifest.txt", tmp_path, TransientError)
    refusal(f"{breaking.url}/manifest.txt", tmp_path, TransientError)
