"""Pictures of chips: requests to a WMS, and pictures from the sources."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kiln.archives import registry
from kiln.errors import SourceError
from kiln.explorer import pictures
from kiln.explorer.pictures import SIZE, from_source, picture, wms_request
from kiln.io import storage
from tests import ROOT
from tests.support.pictures import BOX, CRSS, VERSIONS, row

# ------------------------------------------------------------------------------------------------------------- requests


def test_the_axes_of_each_version_and_crs():
    box = (-2.0, 43.0, -1.0, 45.0)
    requests = {
        (v, c): wms_request({"url": "u", "version": v, "crs": c, "layers": "l"}, box) for v in VERSIONS for c in CRSS
    }
    assert requests["1.1.1", "EPSG:4326"]["BBOX"] == "-2,43,-1,45"
    assert requests["1.3.0", "EPSG:4326"]["BBOX"] == "43,-2,45,-1"  # latitude first
    metres = [float(v) for v in requests["1.3.0", "EPSG:3857"]["BBOX"].split(",")]
    assert metres == pytest.approx([-222638.98, 5311971.85, -111319.49, 5621521.49], abs=0.01)
    assert requests["1.1.1", "EPSG:3857"]["BBOX"] == requests["1.3.0", "EPSG:3857"]["BBOX"]
    for (version, crs), request in requests.items():
        assert request["SRS" if version == "1.1.1" else "CRS"] == crs
        assert ("CRS" if version == "1.1.1" else "SRS") not in request
        assert request["STYLES"] == ""
        assert (request["SERVICE"], request["REQUEST"], request["VERSION"]) == ("WMS", "GetMap", version)
        assert (request["WIDTH"], request["HEIGHT"], request["FORMAT"]) == ("256", "256", "image/png")
        assert "TIME" not in request


def test_time_styles_and_format_are_passed_on():
    wms = {"version": "1.3.0", "layers": "a,b", "time": "2021-01-01", "styles": "natural", "format": "image/jpeg"}
    request = wms_request(wms, BOX)
    assert (request["TIME"], request["STYLES"], request["FORMAT"]) == ("2021-01-01", "natural", "image/jpeg")
    assert request["CRS"] == "EPSG:3857"  # has no axes to swap


# --------------------------------------------------------------------------------------------------------- from sources


def test_the_source_gives_the_chips_own_pixels_north_up(tile):
    pixels = from_source("worldcover", tile, (-1, 43, 0, 44)).astype(float)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels[:120].mean() < 0.8 * pixels[136:].mean()
    redness = pixels[..., 0] - pixels[..., 1]
    assert redness[:, :120].mean() + 20 < redness[:, 136:].mean()


def test_a_source_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.tif").write_bytes(b"II*\0nothing")
    for name in ("gone.tif", "broken.tif"):
        with pytest.raises(SourceError, match=name):
            from_source("worldcover", str(tmp_path / name), BOX)


def test_a_truncated_source_is_named(tile, tmp_path):
    data = Path(tile).read_bytes()
    (tmp_path / "short.tif").write_bytes(data[: len(data) // 3])
    with pytest.raises(SourceError, match=r"short\.tif"):
        from_source("worldcover", str(tmp_path / "short.tif"), BOX)


READ = """
import sys
import numpy as np
from kiln.explorer.pictures import from_source
np.save(sys.argv[2], from_source("worldcover", sys.argv[1], tuple(map(float, sys.argv[3:]))))
"""


def test_a_source_is_read_over_http_without_other_requests(serve, tile, tmp_path):
    """Read in another process, because GDAL can block the server's thread in this one."""
    server = serve({"/tile.tif": Path(tile).read_bytes()})
    command = [sys.executable, "-c", READ, f"{server.url}/tile.tif", str(tmp_path / "shown.npy"), *map(str, BOX)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=30)
    assert np.array_equal(np.load(tmp_path / "shown.npy"), from_source("worldcover", tile, BOX))
    assert {path for _, path, _ in server.requests} == {"/tile.tif"}  # no listing and no side files


def test_a_source_on_s3_is_read_through_the_endpoint_of_the_environment(bucket, tile, tmp_path):
    storage.write_bytes(f"{bucket}/tile.tif", Path(tile).read_bytes())
    command = [sys.executable, "-c", READ, f"{bucket}/tile.tif", str(tmp_path / "shown.npy"), *map(str, BOX)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "shown.npy"), from_source("worldcover", tile, BOX))


def test_without_a_service_the_source_is_read_with_that_reason(tile):
    for services in ({}, {"worldcover": None}, {"worldcover": {"wms": None}}, {"neighbours": 10}):
        result = picture(row(tile), services)
        assert (result.origin, result.why) == ("source", "no service configured")


def test_datasets_without_an_archive_or_without_its_pictures_have_no_picture(tile, monkeypatch):
    result = picture(row(tile) | {"dataset": "published"}, {})
    assert (result.pixels, result.origin) == (None, "none")
    assert "published: no way is known to draw its sources" in result.why
    archive = replace(registry.get_archive("worldcover"), name="toy", module="kiln.errors")
    monkeypatch.setattr(pictures, "archives", lambda: {"toy": archive})
    assert "toy: no way is known to draw" in picture(row(tile) | {"dataset": "toy"}, {}).why
