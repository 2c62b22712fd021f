"""Errors of a strict WMS: each is reported, and the picture is read from the source."""

import contextlib
import io
import re
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from kiln.explorer import pictures
from kiln.explorer.pictures import SIZE, from_source, picture
from tests.support.pictures import BOX, CRSS, VERSIONS, row


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


GOOD = png(np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8))
REPORT = b"""<?xml version='1.0'?><ServiceExceptionReport version="1.3.0"><ServiceException code="StyleNotDefined">
msWMSLoadGetMapParams(): WMS server error. Missing required parameter STYLES</ServiceException>
</ServiceExceptionReport>"""


class Strict:
    """A WMS as strict as MapServer, with data in BOX. `answer` replaces its answers; `requests` lists what it got."""

    def __init__(self):
        self.requests = []
        self.answer = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_GET(self):
                request = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()}
                outer.requests.append(request)
                status, kind, body = (outer.answer or outer.map)(request)
                self.send_response(status)
                if kind:
                    self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/wms"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @staticmethod
    def map(request):
        if "STYLES" not in request:
            return 200, "text/xml; charset=UTF-8", REPORT
        first, second, third, fourth = map(float, request["BBOX"].split(","))
        if request["VERSION"] == "1.3.0" and request["CRS"] == "EPSG:4326":
            first, second, third, fourth = second, first, fourth, third
        inside = first < BOX[2] and third > BOX[0] and second < BOX[3] and fourth > BOX[1]
        blank = png(np.full((SIZE, SIZE, 3), 255, np.uint8))
        return 200, "image/png", GOOD if inside else blank


@pytest.fixture
def strict():
    service = Strict()
    yield service
    service.server.shutdown()
    service.server.server_close()


def strict_services(strict, **changes):
    return {
        "worldcover": {"wms": {"url": strict.url, "version": "1.3.0", "layers": "l", "crs": "EPSG:4326", **changes}}
    }


def test_the_strict_service_accepts_the_request(strict, tile):
    result = picture(row(tile), strict_services(strict))
    assert (result.origin, result.why) == ("wms", "")
    assert png(result.pixels) == GOOD
    assert strict.requests[0]["STYLES"] == ""


def test_an_xml_error_with_status_200_is_quoted(strict, tile, monkeypatch):
    original = pictures.wms_request
    monkeypatch.setattr(pictures, "wms_request", lambda *a: {k: v for k, v in original(*a).items() if k != "STYLES"})
    result = picture(row(tile), strict_services(strict))
    assert result.origin == "source"
    assert "text/xml" in result.why
    assert "Missing required parameter STYLES" in result.why
    assert "<" not in result.why


def test_swapped_axes_are_reported_as_a_blank_picture(strict, tile, monkeypatch):
    monkeypatch.setattr(
        Strict, "map", staticmethod(lambda request, old=Strict.map: old(request | {"VERSION": "1.1.1"}))
    )
    result = picture(row(tile), strict_services(strict))
    assert result.origin == "source"
    assert "blank" in result.why
    assert "axes" in result.why


def test_a_wholly_transparent_picture_is_blank(strict, tile):
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    strict.answer = lambda request: (200, "image/png", png(pixels))
    result = picture(row(tile), strict_services(strict))
    assert result.origin == "source"
    assert "blank" in result.why


def png_of_size(width, height):
    """Return the bytes of a picture whose header has another size than its pixels."""
    head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    return GOOD[:12] + head + struct.pack(">I", zlib.crc32(head)) + GOOD[33:]


ANSWERS = {
    "a failing server": ((500, "text/plain", b"oops"), "500"),
    "a page that is gone": ((404, "text/html", b"<h1>gone</h1>"), "404"),
    "a redirect to nowhere": ((302, "text/html", b""), "302|does not answer|no picture"),
    "a web page": ((200, "text/html", b"<html><body>Please <b>log in</b></body></html>"), "text/html.*Please log in"),
    "json": ((200, "application/json", b'{"detail": "no such layer"}'), "no such layer"),
    "no content type": ((200, "", GOOD), "no content type"),
    "nothing": ((200, "image/png", b""), "cannot be read"),
    "another size": ((200, "image/png", png(np.ones((10, 20, 3), np.uint8))), "20 x 10 px, not 256 x 256"),
    "a bomb": ((200, "image/png", png_of_size(60_000, 60_000)), "cannot be read"),
    "a large one": ((200, "image/png", png_of_size(9_000, 9_000)), "9000 x 9000 px, not 256 x 256"),
    "too much": ((200, "image/png", bytes(pictures.MAX_ANSWER_BYTES + 1)), "more than 16 MB"),
    "xml that calls itself a picture": ((200, "image/png", REPORT), "cannot be read"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_without_a_picture_is_reported_and_the_source_is_read(strict, tile, name):
    answer, why = ANSWERS[name]
    strict.answer = lambda request: answer
    result = picture(row(tile), strict_services(strict))
    assert result.origin == "source"
    assert np.array_equal(result.pixels, from_source("worldcover", tile, BOX))
    assert result.why
    assert re.search(why, result.why), result.why


def test_a_truncated_picture_is_noticed_at_every_length(strict, tile):
    for length in [*range(0, 120, 3), *range(120, len(GOOD) - 20, len(GOOD) // 20)]:
        strict.answer = lambda request, length=length: (200, "image/png", GOOD[:length])
        result = picture(row(tile), strict_services(strict))
        assert (result.origin, bool(result.why)) == ("source", True), length


def test_a_damaged_picture_is_never_an_exception(strict, tile):
    rng = np.random.default_rng(1)
    for _ in range(40):
        data = bytearray(GOOD)
        at = int(rng.integers(8, 200))
        data[at : at + 8] = rng.bytes(8)
        strict.answer = lambda request, data=bytes(data): (200, "image/png", data)
        assert picture(row(tile), strict_services(strict)).origin in ("source", "wms")  # never an exception


def test_a_service_that_hangs_is_abandoned(strict, tile, monkeypatch):
    monkeypatch.setattr(pictures, "TIMEOUT_S", (0.3, 0.3))
    strict.answer = lambda request: time.sleep(8) or (200, "image/png", GOOD)
    start = time.monotonic()
    result = picture(row(tile), strict_services(strict))
    assert time.monotonic() - start < 6
    assert result.origin == "source"
    assert "does not answer" in result.why


def test_a_service_that_is_gone_is_reported(tile):
    wms = {"url": "http://127.0.0.1:9/wms", "version": "1.3.0", "layers": "l"}
    result = picture(row(tile), {"worldcover": {"wms": wms}})
    assert result.origin == "source"
    assert "does not answer" in result.why


def test_pictures_of_several_modes_become_rgb(strict, tile):
    base = Image.open(io.BytesIO(GOOD))
    for mode, form, kind in (("P", "PNG", "image/png"), ("L", "PNG", "image/png"), ("RGB", "JPEG", "image/jpeg")):
        out = io.BytesIO()
        base.convert(mode).save(out, form)
        answer = (200, kind, out.getvalue())
        strict.answer = lambda request, answer=answer: answer
        result = picture(row(tile), strict_services(strict))
        assert (result.origin, result.pixels.shape) == ("wms", (SIZE, SIZE, 3)), mode


def test_a_service_is_asked_for_both_sides_of_the_antimeridian(strict, tile):
    """A quarter of the box lies west of the antimeridian. The service answers each part in other colours."""
    halves = {}

    def answer(request):
        south, west, north, east = map(float, request["BBOX"].split(","))
        assert west < east  # services accept no other box
        pixels = np.random.default_rng(int(abs(west))).integers(
            0, 255, (SIZE, int(request["WIDTH"]), 3), dtype=np.uint8
        )
        halves[west, south, east, north] = pixels
        return 200, "image/png", png(pixels)

    strict.answer = answer
    result = picture(row(tile, (179.75, -17.0, -179.25, -16.0)), strict_services(strict))
    assert (result.origin, result.why) == ("wms", "")
    west, east = halves[179.75, -17, 180, -16], halves[-180, -17, -179.25, -16]
    assert (west.shape[1], east.shape[1]) == (64, 192)
    assert np.array_equal(result.pixels, np.concatenate([west, east], axis=1))


@pytest.mark.parametrize("width", [SIZE, 63])
def test_a_part_of_another_width_than_requested_is_reported(strict, tile, width):
    pixels = np.random.default_rng(0).integers(0, 255, (SIZE, width, 3), dtype=np.uint8)
    strict.answer = lambda request: (200, "image/png", png(pixels))
    result = picture(row(tile, (179.75, -17.0, -179.25, -16.0)), strict_services(strict))
    assert result.origin != "wms"
    assert f"{width} x 256 px, not 64 x 256" in result.why


@pytest.mark.parametrize("crs", CRSS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("fraction", [0.999, 0.5, 0.001])
def test_no_request_over_the_antimeridian_is_empty(strict, tile, version, crs, fraction):
    def answer(request):
        a, b, c, d = map(float, request["BBOX"].split(","))
        assert a < c
        assert b < d
        pixels = np.random.default_rng(0).integers(0, 255, (SIZE, int(request["WIDTH"]), 3), "uint8")
        return 200, "image/png", png(pixels)

    strict.answer = answer
    box = (180 - 0.02 * fraction, 10.0, -180 + 0.02 * (1 - fraction), 10.02)
    assert picture(row(tile, box), strict_services(strict, version=version, crs=crs)).origin == "wms"
    assert sum(int(request["WIDTH"]) for request in strict.requests) == SIZE


def test_if_service_and_source_fail_both_reasons_are_reported(strict, tmp_path):
    strict.answer = lambda request: (500, "text/plain", b"oops")
    result = picture(row(tmp_path / "gone.tif"), strict_services(strict))
    assert (result.pixels, result.origin) == (None, "none")
    assert "500" in result.why
    assert "gone.tif" in result.why


def test_a_sheet_combines_pictures_of_every_origin(strict, tile, tmp_path, caplog):
    """One chip is from the service, one from its source, and one has no picture."""
    from kiln.explorer.chips import ChipFacts, Hit
    from kiln.explorer.contact_sheet import draw_contact_sheet

    far = (-0.3, 43.1, -0.2, 43.2)
    chips = [
        ChipFacts(f"c{n}", row(t, box)["dataset"], 2021, None, "item", str(t), 0.0, None, -0.5, 43.5, box)
        for n, (t, box) in enumerate([(tile, BOX), (tile, far), (tmp_path / "gone.tif", far)])
    ]
    hits = [Hit(chip, 1 - n / 10) for n, chip in enumerate(chips)][1:]
    origins = draw_contact_sheet(chips[0], hits, strict_services(strict), untrained=False, path=tmp_path / "a.png")
    assert origins == {"wms": 1, "source": 1, "none": 1}
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        grey = (np.asarray(image.convert("RGB")).astype(int) == [0xD9, 0xD9, 0xD6]).all(axis=-1)
    assert 5_000 < grey.sum() < 60_000
    assert "blank picture" in caplog.text
