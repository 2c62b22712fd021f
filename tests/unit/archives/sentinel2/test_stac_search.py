"""A search returns every item of the API or raises an error."""

import json

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pystac_client.exceptions import APIError
from shapely.geometry import mapping

from kiln.archives.sentinel2 import stac_search
from kiln.archives.sentinel2.stac_search import read_area, region_of, search, split_region
from kiln.errors import ConfigError, SourceError, TransientError
from kiln.formats.bounding_box import BoundingBox
from tests.support.stac_api import COLLECTION, StacApi


def make_item(n, lon=0.0, lat=0.0, cloud=0.0, day=1):
    name = f"S2A_31NAA_202001{day:02d}_{n}_L2A"
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": COLLECTION,
        "geometry": mapping(shapely.box(lon, lat, lon + 1, lat + 1)),
        "properties": {"datetime": f"2020-01-{day:02d}T10:00:00Z", "eo:cloud_cover": cloud},
        "links": [],
        "assets": {},
    }


@pytest.fixture
def api():
    server = StacApi([make_item(n, lon=n % 7) for n in range(25)])
    yield server
    server.stop()


def ids_of(items):
    return [i["id"] for i in items]


def search_ids(api, **options):
    return ids_of(search(api.url, COLLECTION, **{"page_size": 10, "backoff_s": 0.001, **options}))


EVERYTHING = ids_of(make_item(n) for n in range(25))


@pytest.mark.parametrize("way", ["post", "get", "merge", "relative"])
def test_all_pages_are_read_for_every_kind_of_next_link(api, way):
    if way != "post":
        setattr(api, way, True)
    assert search_ids(api) == EVERYTHING
    assert [s.get("token", 0) for s in api.searches] == [0, 10, 20]


@pytest.mark.parametrize("size", [1, 5, 24, 25, 26, 100])
def test_pages_of_any_size_give_the_same_items(api, size):
    assert search_ids(api, page_size=size) == EVERYTHING


@pytest.mark.parametrize("context", [False, True])
def test_fewer_items_than_the_server_reports_are_an_error(api, context):
    api.context = context
    assert search_ids(api) == EVERYTHING
    api.matched = 1
    with pytest.raises(TransientError, match="expected 26 items, got 25"):
        search_ids(api)


def test_a_server_that_reports_too_low_or_no_number_loses_nothing(api):
    for difference in (-20, None):
        api.matched = difference
        assert search_ids(api) == EVERYTHING


def test_an_empty_page_that_has_a_next_one_does_not_end_the_search(api):
    api.items = [make_item(n) for n in range(40)]
    api.matched = None
    api.trouble = {2: ["empty"]}
    assert len(search_ids(api)) == 30, "the pages after it are read"
    api.matched, api.trouble = 0, {2: ["empty"]}
    with pytest.raises(TransientError, match="expected 40 items, got 30"):
        search_ids(api)


def test_a_repeated_page_is_an_error_and_not_an_endless_search(api):
    api.matched, api.trouble = None, {2: ["again"]}
    with pytest.raises(TransientError, match="page 2: expected further items"):
        search_ids(api)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_page_that_succeeds_on_the_third_try_loses_nothing(api, status, page):
    api.trouble = {page: [status, status]}
    assert search_ids(api) == EVERYTHING
    assert len(api.searches) == 5


def test_rate_limiting_waits_for_the_retry_after_of_the_server(api, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    api.wait, api.trouble = "7", {2: [429, 503]}
    assert search_ids(api) == EVERYTHING
    assert [s for s in slept if s >= 1] == [7, 7]
    api.wait, api.trouble = "86400", {2: [429]}
    search_ids(api)
    assert max(slept) == stac_search.MAX_WAIT_S


def test_a_search_succeeds_after_a_second_of_rate_limiting(api):
    api.wait, api.trouble = "1", {1: [429]}
    assert search_ids(api) == EVERYTHING


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("page", [1, 2, 3])
def test_a_page_that_always_fails_is_an_error_and_not_a_shorter_list(api, status, page):
    api.trouble = {page: [status] * 99}
    with pytest.raises(TransientError, match=f"answers {status}"):
        search_ids(api)
    assert len(api.searches) == page + stac_search.MAX_RETRIES, "one request per page and per retry"


def test_a_connection_broken_within_a_page_is_retried_and_then_an_error(api):
    api.trouble = {2: ["half", "half"]}
    assert search_ids(api) == EVERYTHING
    api.trouble = {2: ["half"] * 99}
    with pytest.raises(TransientError, match="IncompleteRead"):
        search_ids(api)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refused_search_is_a_config_error_with_the_reason(api, status):
    api.trouble = {2: [status]}
    with pytest.raises(ConfigError, match=f"refuses with {status}: .*on purpose"):
        search_ids(api)
    assert len(api.searches) == 2


def test_a_page_that_is_html_or_other_json_is_an_error(api):
    api.trouble = {2: ["html"]}
    with pytest.raises(ConfigError, match="an answer that is not JSON"):
        search_ids(api)
    api.trouble = {2: ["odd"]}
    with pytest.raises(TransientError, match=r"expected a page of items, got .*timed out"):
        search_ids(api)


def test_an_item_without_an_id_is_an_error(api):
    api.items = [make_item(0), {**make_item(1), "id": None}]
    with pytest.raises(SourceError, match="page 1: expected items with an id"):
        search_ids(api)


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b"[]", b"{}", b'{"type": "Feature"}', b"\xff\xfe"])
def test_a_landing_page_that_is_not_of_a_stac_api_is_refused(serve, page):
    web = serve({"/": page})
    with pytest.raises(ConfigError, match=web.url):
        list(search(f"{web.url}/", COLLECTION, dates="2020-01-01"))


def test_a_catalogue_without_search_is_refused(api):
    api.conforms = ["core"]
    with pytest.raises(ConfigError, match="expected a STAC API with item search"):
        search_ids(api)


def test_an_unreachable_server_is_a_transient_error(api, monkeypatch):
    monkeypatch.setattr(stac_search, "MAX_RETRIES", 1)
    with pytest.raises(TransientError, match="the API cannot be reached"):
        list(search("http://127.0.0.1:9", COLLECTION, dates="2020-01-01", backoff_s=0.01))


def test_dates_cloud_cover_and_area_are_part_of_the_search(api):
    api.items = [make_item(n, lon=n, cloud=10.0 * n, day=n + 1) for n in range(8)]
    assert search_ids(api, dates="2020-01-03/2020-01-05") == ids_of(api.items[2:5])
    assert search_ids(api, dates="2020-01-03/..") == ids_of(api.items[2:])
    assert search_ids(api, max_cloud=35.5) == ids_of(api.items[:4])
    assert search_ids(api, region=region_of(BoundingBox(2.5, 0.2, 3.5, 0.4))) == ids_of(api.items[2:4])
    assert api.searches[-1]["intersects"]["type"] == "Polygon"
    assert search_ids(
        api, region=region_of(BoundingBox(2.5, 0.2, 3.5, 0.4)), dates="2020-01-03", max_cloud=100
    ) == ids_of(api.items[2:3])


def test_cloud_cover_is_not_part_of_the_search_if_the_api_does_not_support_it(api):
    api.conforms = ["core", "item-search"]
    search_ids(api, max_cloud=1.0)
    assert "query" not in api.searches[0]


def test_another_collection_has_no_items(api):
    assert list(search(api.url, "landsat", dates="2020-01-01/2020-02-01")) == []


# ---------------------------------------------------------------------------------------------------------------- areas


def area(tmp_path, document):
    path = tmp_path / "area.geojson"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(path)


def collection(*shapes):
    return {
        "type": "FeatureCollection",
        "features": [
            {"type": "Feature", "properties": {}, "geometry": None if s is None else mapping(s)} for s in shapes
        ],
    }


def test_overlapping_features_of_a_collection_are_searched_once(api, tmp_path):
    squares = [shapely.box(x, 0, x + 2, 1) for x in (0, 1, 2, 0.5)]
    found = search_ids(api, region=read_area(area(tmp_path, collection(*squares, None))))
    assert len(found) == len(set(found)) == len([i for i in api.items if i["geometry"]["coordinates"][0][0][0] <= 5])
    assert {s["intersects"]["type"] for s in api.searches} == {"Polygon"}


def test_a_geometry_a_feature_and_a_collection_are_the_same_area(tmp_path):
    square = shapely.box(3, 4, 5, 6)
    feature = {"type": "Feature", "properties": {}, "geometry": mapping(square)}
    for document in (mapping(square), feature, collection(square)):
        assert read_area(area(tmp_path, document)).equals(square)


def test_a_polygon_that_crosses_itself_is_repaired(tmp_path):
    bow = {"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}
    assert read_area(area(tmp_path, bow)).area == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ("<html>", "not JSON"),
        ("[]", "expected GeoJSON"),
        ("{}", "expected GeoJSON"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1]]]}, "expected GeoJSON"),
        ({"type": "Star", "coordinates": []}, "expected GeoJSON"),
        (collection(), "expected a geometry"),
        (collection(None), "expected a geometry"),
        (mapping(shapely.box(500000, 5200000, 600000, 5300000)), "expected degrees"),
        (mapping(shapely.box(170, 0, 190, 10)), "cut at the antimeridian"),
    ],
)
def test_an_invalid_area_is_refused_with_a_reason(tmp_path, document, reason):
    with pytest.raises(ConfigError, match=f"area.geojson.*{reason}"):
        read_area(area(tmp_path, document))


def test_a_missing_area_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.geojson: does not exist"):
        read_area(str(tmp_path / "none.geojson"))


def test_a_bounding_box_across_the_antimeridian_is_cut_there():
    assert region_of(BoundingBox(170, -20, -175, -10)).bounds == (-180, -20, 180, -10)
    assert region_of(BoundingBox(170, -20, -175, -10)).area == pytest.approx(150)
    assert region_of(BoundingBox(-5, 0, 5, 1)).bounds == (-5, 0, 5, 1)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-170, 170), st.floats(-80, 80), st.floats(0.01, 20)), min_size=1, max_size=40))
def test_the_parts_of_a_split_region_cover_it_and_are_short(places):
    region = shapely.union_all([shapely.box(x, y, x + s, y + s / 2) for x, y, s in places])
    parts = list(split_region(region, 20))
    assert shapely.union_all(parts).symmetric_difference(region).area == pytest.approx(0, abs=1e-9)
    largest = max(shapely.get_num_coordinates(g) for g in getattr(region, "geoms", [region]))
    assert all(shapely.get_num_coordinates(p) <= max(20, largest) for p in parts)
    assert list(split_region(region, 20)) == parts


def test_an_area_of_many_parts_is_split_into_several_searches(api, monkeypatch):
    monkeypatch.setattr(split_region, "__defaults__", (12,))
    region = shapely.union_all([shapely.box(x, 0.1, x + 0.5, 0.2) for x in range(-1, 7)])
    found = search_ids(api, region=region, page_size=100)
    assert len(api.searches) == 4
    assert len(found) > len(EVERYTHING), "once for each search"
    assert set(found) == set(EVERYTHING)


def test_a_proxy_that_wants_a_password_is_a_setting(serve, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", serve({}, status=407).url)
    with pytest.raises(ConfigError, match=r"stac\.invalid.*407 of a proxy\. Check HTTPS_PROXY"):
        list(search("http://stac.invalid", "sentinel-2-l2a", backoff_s=0))


def test_a_certificate_that_is_not_known_is_a_setting(monkeypatch):
    def refuse(*args, **kwargs):
        raise APIError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer")

    monkeypatch.setattr(stac_search.Client, "open", refuse)
    with pytest.raises(ConfigError, match=r"stac\.invalid.*AWS_CA_BUNDLE"):
        list(search("https://stac.invalid", "sentinel-2-l2a"))
