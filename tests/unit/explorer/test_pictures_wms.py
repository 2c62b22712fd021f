"""Pictures of chips from a real WMS, TiTiler: the same place as the source, and errors."""

import threading
import time

import numpy as np
import pytest

from kiln.archives.worldcover.picture import STRETCH
from kiln.explorer import pictures
from kiln.explorer.pictures import SIZE, from_source, from_wms, picture
from tests.support.pictures import BOX, CRSS, VERSIONS, correlation, row


@pytest.fixture(scope="module")
def titiler():
    """Start TiTiler's WMS on a local port; return its address."""
    import uvicorn
    from fastapi import FastAPI
    from titiler.core.factory import TilerFactory
    from titiler.extensions import wmsExtension

    app = FastAPI()
    app.include_router(TilerFactory(extensions=[wmsExtension(supported_crs=CRSS)]).router)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/wms"
    server.should_exit = True
    thread.join(10)


def service(titiler, tile, **changes):
    """Return the config of a WMS; TiTiler's parameters for bands and stretch are in its URL."""
    url = f"{titiler}?bidx=1&bidx=2&bidx=3&rescale=0,{STRETCH.white:g}&resampling=nearest"
    return {"url": url, "version": "1.3.0", "crs": "EPSG:3857", "layers": str(tile), "styles": "", **changes}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("crs", CRSS)
def test_a_real_wms_shows_the_same_place_as_the_source(titiler, tile, version, crs):
    pixels = from_wms(service(titiler, tile, version=version, crs=crs), BOX)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    expected = from_source("worldcover", tile, BOX)
    assert correlation(pixels, expected) > 0.9
    for turned in (expected[::-1], expected[:, ::-1], np.rot90(expected), expected.transpose(1, 0, 2)):
        assert correlation(pixels, turned) < 0.7


@pytest.mark.parametrize("version", VERSIONS)
def test_a_swapped_box_is_noticed_and_the_source_is_read(titiler, tile, version, monkeypatch):
    """The request has the axes of EPSG:4326 of the other WMS version."""
    wms = service(titiler, tile, version=version, crs="EPSG:4326")
    original = pictures.wms_request

    def swapped(*args):
        request = original(*args)
        a, b, c, d = request["BBOX"].split(",")
        return request | {"BBOX": f"{b},{a},{d},{c}"}

    monkeypatch.setattr(pictures, "wms_request", swapped)
    result = picture(row(tile), {"worldcover": {"wms": wms}})
    assert result.origin == "source"
    assert result.why
    assert np.array_equal(result.pixels, from_source("worldcover", tile, BOX))


def test_a_missing_layer_is_noticed_and_the_source_is_read(titiler, tile):
    result = picture(row(tile), {"worldcover": {"wms": service(titiler, "/nowhere.tif")}})
    assert result.origin == "source"
    assert "500" in result.why or "404" in result.why


def test_a_picture_from_the_service_has_that_origin(titiler, tile):
    result = picture(row(tile), {"worldcover": {"wms": service(titiler, tile)}})
    assert (result.origin, result.why) == ("wms", "")
