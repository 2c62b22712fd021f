"""Pictures of chips from a real strict WMS: Debian's MapServer over a tile like those of the sample."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kiln.explorer import pictures
from kiln.explorer.pictures import SIZE, from_source, from_wms, picture
from kiln.explorer.web.picture_cache import PictureCache
from tests.explorer.mapserver import MapServer
from tests.support.pictures import BOX, correlation, row, write_quartered_tile

REQUESTS = [(v, c) for v in ("1.1.1", "1.3.0") for c in ("EPSG:4326", "EPSG:3857")]


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tile whose four quarters differ in brightness."""
    return write_quartered_tile(tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def wms(program: str, tile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MapServer]:
    """Start MapServer with the tile."""
    server = MapServer(program, tmp_path_factory.mktemp("mapserver"), tile, (-1, 43, 0, 44))
    yield server
    server.stop()


def service(wms, **changes):
    return {"url": wms.url, "version": "1.3.0", "crs": "EPSG:4326", "layers": "tiles", "styles": "", **changes}


def picture_of(wms, tile, box=BOX, **changes):
    """Return the picture of a chip whose dataset has this service."""
    return picture(row(tile, box), {"worldcover": {"wms": service(wms, **changes)}})


@pytest.mark.parametrize(("version", "crs"), REQUESTS)
@pytest.mark.parametrize("kind", ["image/png", "image/jpeg"])
def test_the_wms_shows_the_same_place_as_the_source(wms, tile, version, crs, kind):
    result = from_wms(service(wms, version=version, crs=crs, format=kind), BOX)
    assert result.shape == (SIZE, SIZE, 3)
    expected = from_source("worldcover", str(tile), BOX)
    assert correlation(result, expected) > 0.9
    for turned in (expected[::-1], expected[:, ::-1], np.rot90(expected), expected.transpose(1, 0, 2)):
        assert correlation(result, turned) < 0.7


def edit_requests(monkeypatch, edit):
    """Pass the parameters of every request through `edit`."""
    wms_request = pictures.wms_request
    monkeypatch.setattr(pictures, "wms_request", lambda *args: edit(wms_request(*args)))


@pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
def test_a_wrong_axis_order_is_reported_as_a_blank_picture(wms, tile, version, monkeypatch):
    def swapped(request):
        a, b, c, d = request["BBOX"].split(",")
        return request | {"BBOX": f"{b},{a},{d},{c}"}

    edit_requests(monkeypatch, swapped)
    result = picture_of(wms, tile, version=version)
    assert (result.origin, "blank" in result.why, "axes" in result.why) == ("source", True, True)
    assert np.array_equal(result.pixels, from_source("worldcover", str(tile), BOX))


@pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
def test_the_xml_error_of_a_request_without_styles_is_quoted(wms, tile, version, monkeypatch):
    edit_requests(monkeypatch, lambda request: {k: v for k, v in request.items() if k != "STYLES"})
    result = picture_of(wms, tile, version=version)
    assert result.origin == "source"
    assert "xml" in result.why
    assert "STYLES" in result.why


@pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"layers": "nowhere"}, "layer"), ({"crs": "EPSG:32630"}, "RS"), ({"styles": "odd"}, "style")],
)
def test_the_xml_error_of_an_unknown_layer_crs_or_style_is_quoted(wms, tile, version, changes, reason):
    result = picture_of(wms, tile, version=version, **changes)
    assert result.origin == "source"
    assert "no picture" in result.why
    assert reason.lower() in result.why.lower()


@pytest.mark.parametrize(("version", "crs"), REQUESTS)
def test_a_place_without_data_is_reported_as_a_blank_picture(wms, tile, version, crs):
    with pytest.raises(pictures.SourceError, match="blank"):
        from_wms(service(wms, version=version, crs=crs), (-3.7, 43.35, -3.5, 43.55))


def test_a_cached_picture_is_served_after_the_service_stops(program, tile, tmp_path):
    server = MapServer(program, tmp_path, tile, (-1, 43, 0, 44))
    cache = PictureCache(tmp_path / "pictures", {"worldcover": {"wms": service(server)}})
    chip = {"chip_id": "c", "dataset": "worldcover", "source": str(tile), "bbox": list(BOX)}
    first = cache.get(chip)
    server.stop()
    assert len(server.queries) == 1
    assert (first.origin, first.why) == ("wms", "")
    assert cache.get(chip) == first
    other = cache.get(chip | {"chip_id": "d", "bbox": [-0.4, 43.35, -0.2, 43.55]})
    assert (other.origin, "does not answer" in other.why) == ("source", True)
