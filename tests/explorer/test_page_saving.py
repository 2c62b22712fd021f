"""The page's links, files of marks and exports."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.explorer.tile import FIRST, centre


def test_a_link_shows_the_same_page(visit):
    page = visit(f"like={FIRST}&dislike=test:00020")
    page.page.click("#filters summary")
    page.page.check("input[value='2021']")
    page.page.check("input[value=colours]")
    page.page.fill("#k", "24")
    page.page.press("#k", "Tab")
    page.click_map(*centre("test:00400"))
    page.page.focus("#map canvas")
    page.page.keyboard.press("+")
    page.page.wait_for_function("() => location.hash.includes('map=')")
    page.page.wait_for_function("() => document.querySelectorAll('#grid li').length === 24")
    found, link = page.ranked(), page.page.url
    other = visit(link.partition("#")[2])
    assert other.ranked() == found
    assert other.ids("#likes") == [FIRST]
    assert other.ids("#dislikes") == ["test:00020"]
    assert other.page.is_checked("input[value=colours]")
    assert other.page.is_checked("input[value='2021']")
    assert other.page.url == link
    views = [p.page.evaluate("[kiln.map.getZoom(), kiln.map.getCenter().lng]") for p in (page, other)]
    assert views[0] == pytest.approx(views[1], abs=0.01)


def test_marks_are_saved_and_opened_again(visit, tmp_path):
    page = visit(f"like={FIRST}&like=scene:00300&dislike=test:00020")
    page.ranked()
    with page.page.expect_download() as saved:
        page.page.click("#save")
    file = tmp_path / saved.value.suggested_filename
    saved.value.save_as(file)
    marks = json.loads(file.read_text())
    assert [(f["properties"]["chip_id"], f["properties"]["mark"]) for f in marks["features"]] == [
        (FIRST, "like"), ("scene:00300", "like"), ("test:00020", "dislike"),
    ]  # fmt: skip
    assert all(f["geometry"]["type"] == "Polygon" for f in marks["features"])
    other = visit()
    other.page.set_input_files("#open-file", str(file))
    other.page.wait_for_selector("#dislikes [data-chip]")
    assert other.ids("#likes") == [FIRST, "scene:00300"]
    assert other.ranked() == page.ranked()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not json", "no JSON"),
        ('{"type": "Feature"}', "FeatureCollection"),
        ('{"type": "FeatureCollection", "features": [{"properties": {"chip_id": 3}}]}', "feature 1"),
        (json.dumps({"type": "FeatureCollection", "features": [
            {"properties": {"chip_id": f"test:{n:05d}", "mark": "like"}} for n in range(10_000)]}), "at most 1000"),
    ],
)  # fmt: skip
def test_a_file_without_marks_is_refused_with_a_reason(visit, tmp_path, text, words):
    (tmp_path / "odd.geojson").write_text(text)
    page = visit(f"like={FIRST}")
    page.page.set_input_files("#open-file", str(tmp_path / "odd.geojson"))
    page.page.wait_for_function("w => document.getElementById('find-error').textContent.includes(w)", arg=words)
    assert page.ids("#likes") == [FIRST]


def test_results_are_exported_as_geojson_and_as_geoparquet_with_embeddings(visit):
    page = visit(f"like={FIRST}&k=10")
    ranked = page.ranked()
    page.page.click("#open-export")
    page.shot("export").accessible()
    with page.page.expect_download() as plain:
        page.page.click("#export-go")
    exported = json.loads(Path(plain.value.path()).read_text())
    assert [f["properties"]["chip_id"] for f in exported["features"]] == ranked
    assert "embeddings" not in exported["features"][0]["properties"]
    page.page.click("#open-export")
    page.page.check("input[value=geoparquet]")
    page.page.check("#embeddings")
    with page.page.expect_download() as full:
        page.page.click("#export-go")
    table = pq.read_table(io.BytesIO(Path(full.value.path()).read_bytes()))
    assert table["chip_id"].to_pylist() == ranked
    assert len(table["embeddings"][0].as_py()) == 8


def test_a_mark_of_another_database_is_shown_and_can_be_removed(visit):
    page = visit(f"like={FIRST}&like=elsewhere:1")
    page.page.wait_for_selector("#likes .unknown")
    assert "elsewhere:1" in page.text("#results-error")
    page.accessible()
    page.page.click("#likes .unknown .away")
    assert len(page.ranked()) == 48
    assert page.text("#results-error") == ""
