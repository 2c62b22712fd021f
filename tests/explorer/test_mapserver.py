"""Pictures of chips from a real strict WMS: Debian's MapServer over a tile that is made as those of the sample."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kiln.explorer import pictures
from kiln.explorer.pictures import SIZE, from_source, from_wms, picture
from kiln.explorer.web.picture_cache import PictureCache
from kiln.sample.worldcover import draw_tile
from tests.explorer.mapserver import MapServer
from tests.support.archives import write_tile

BOX = (-0.7, 43.35, -0.5, 43.55)  # in tile N43W001
REQUESTS = [(v, c) for v in ("1.1.1", "1.3.0") for c in ("EPSG:4326", "EPSG:3857")]


@pytest.fixture(scope="module")
def tile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tile of the archive's layout, 240 pixels a degree, its four quarters told apart by their brightness."""
    pixels = draw_tile(-1, 43, 240, 2021, 7)
    pixels[:, :120, :] = pixels[:, :120, :] // 2 + 1  # the north is darker
    pixels[0, :, 120:] += 800  # the east is redder
    return Path(write_tile(tmp_path_factory.mktemp("archive"), 2021, -1, 43, pixels))


@pytest.fixture(scope="module")
def wms(program: str, tile: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MapServer]:
    """MapServer over the tile."""
    made = MapServer(program, tmp_path_factory.mktemp("mapserver"), tile, (-1, 43, 0, 44))
    yield made
    made.stop()


def service(wms, **changes):
    return {"url": wms.url, "version": "1.3.0", "crs": "EPSG:4326", "layers": "tiles", "styles": "", **changes}


def shown(wms, tile, box=BOX, **changes):
    """The picture of a chip whose dataset has this service."""
    row = {
        "dataset": "worldcover",
        "source": str(tile),
        **dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
    }
    return picture(row, {"worldcover": {"wms": service(wms, **changes)}})


def alike(a, b):
    """Correlation of two pictures, channel by channel, the least."""
    return min(np.corrcoef(a[..., c].ravel(), b[..., c].ravel())[0, 1] for c in range(3))


@pytest.mark.parametrize(("version", "crs"), REQUESTS)
@pytest.mark.parametrize("kind", ["image/png", "image/jpeg"])
def test_it_shows_the_same_place_as_the_source(wms, tile, version, crs, kind):
    got = from_wms(service(wms, version=version, crs=crs, format=kind), BOX)
    assert got.shape == (SIZE, SIZE, 3)
    own = from_source("worldcover", str(tile), BOX)
    assert alike(got, own) > 0.9
    for turned in (own[::-1], own[:, ::-1], np.rot90(own), own.transpose(1, 0, 2)):
        assert alike(got, turned) < 0.7


def change(monkeypatch, how):
    """Requests as they must not be: what is asked goes through `how`."""
    ask = pictures.wms_request
    monkeypatch.setattr(pictures, "wms_request", lambda *args: how(ask(*args)))


@pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
def test_wrong_axis_order_is_a_blank_picture_that_is_recognised(wms, tile, version, monkeypatch):
    def swapped(asked):
        a, b, c, d = asked["BBOX"].split(",")
        return asked | {"BBOX": f"{b},{a},{d},{c}"}

    change(monkeypatch, swapped)
    got = shown(wms, tile, version=version)
    assert (got.origin, "blank" in got.why, "axes" in got.why) == ("source", True, True)
    assert np.array_equal(got.pixels, from_source("worldcover", str(tile), BOX))


@pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
def test_without_styles_it_answers_an_xml_error_with_status_200_that_is_quoted(wms, tile, version, monkeypatch):
    change(monkeypatch, lambda asked: {k: v for k, v in asked.items() if k != "STYLES"})
    got = shown(wms, tile, version=version)
    assert got.origin == "source"
    assert "xml" in got.why
    assert "STYLES" in got.why


@pytest.mark.parametrize("version", ["1.1.1", "1.3.0"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [({"layers": "nowhere"}, "layer"), ({"crs": "EPSG:32630"}, "RS"), ({"styles": "odd"}, "style")],
)
def test_what_it_does_not_have_is_an_xml_error_that_is_quoted(wms, tile, version, changes, said):
    got = shown(wms, tile, version=version, **changes)
    assert got.origin == "source"
    assert "no picture" in got.why
    assert said.lower() in got.why.lower()


@pytest.mark.parametrize(("version", "crs"), REQUESTS)
def test_a_place_without_data_is_a_blank_picture_that_is_recognised(wms, tile, version, crs):
    with pytest.raises(pictures.SourceError, match="blank"):
        from_wms(service(wms, version=version, crs=crs), (-3.7, 43.35, -3.5, 43.55))


def test_a_picture_is_kept_and_outlives_the_service(program, tile, tmp_path):
    made = MapServer(program, tmp_path, tile, (-1, 43, 0, 44))
    kept = PictureCache(tmp_path / "pictures", {"worldcover": {"wms": service(made)}})
    chip = {"chip_id": "c", "dataset": "worldcover", "source": str(tile), "bbox": list(BOX)}
    first = kept.get(chip)
    made.stop()
    assert len(made.asked) == 1
    assert (first.origin, first.why) == ("wms", "")
    assert kept.get(chip) == first
    other = kept.get(chip | {"chip_id": "d", "bbox": [-0.4, 43.35, -0.2, 43.55]})
    assert (other.origin, "does not answer" in other.why) == ("source", True)
