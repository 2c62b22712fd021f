"""Pictures of chips: served, cached, bounded; services that fail."""

import io

import numpy as np
from PIL import Image

from kiln.explorer import pictures
from kiln.explorer.web import picture_cache
from kiln.explorer.web.picture_cache import PictureCache
from kiln.explorer.web.version import Version
from tests.support import explorers
from tests.support.products import WORLD, chip_at

CHIP = chip_at(WORLD, 2021, 4, 3)


def picture(web, chip_id):
    answer = web.get(f"/api/picture/{chip_id}.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    with Image.open(io.BytesIO(answer.content)) as image:
        return answer.headers, np.asarray(image.convert("RGB"))


def test_a_picture_is_read_from_the_source_once(web, monkeypatch):
    headers, pixels = picture(web, CHIP.chip_id)
    assert headers["x-picture-from"] == "source"
    assert headers["x-picture-why"] == "no service configured"
    assert pixels.shape == (256, 256, 3)
    assert np.ptp(pixels) > 20
    monkeypatch.setattr(pictures, "picture", None)  # a cached picture is not drawn again
    assert (picture(web, CHIP.chip_id)[1] == pixels).all()


def test_a_missing_picture_is_a_grey_square_with_the_reason(other, tmp_path):
    rows = [
        explorers.chip(1, 0, 0, [1, 0, 0, 0], source=str(tmp_path / "gone.tif")),
        explorers.chip(2, 0, 0, [1, 0, 0, 0], source="/vsicurl/http://169.254.169.254/latest"),
        explorers.chip(3, 0, 0, [1, 0, 0, 0], source="<VRTDataset/>"),
        explorers.chip(4, 0, 0, [1, 0, 0, 0], source=__file__),
        explorers.chip(5, 180, 0, [1, 0, 0, 0], source="ünknown\r\nX-Evil: 1"),
    ]
    server = other(explorers.write(tmp_path / "db", rows))
    for n in range(1, 6):
        headers, pixels = picture(server, f"test:{n:05d}")
        assert headers["x-picture-from"] == "none"
        assert headers["x-picture-why"].isascii()
        assert "x-evil" not in headers
        assert headers["cache-control"] == "no-store"
        assert (pixels[0] == 217).all()


def test_a_picture_of_an_unknown_chip_is_refused(web):
    for name in ("nope", "../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "a" * 5000):
        assert web.get(f"/api/picture/{name}.png").status_code == 404


def test_a_failing_service_is_reported_and_a_slow_one_is_paused(run, tmp_path, serve, monkeypatch):
    """The service answers with an error, then counts as slow; the source's picture is shown."""
    version = Version(str(run / "db"), run / "cache")
    row, next_row = (chip.to_json() for chip in version.matrix.facts([0, 1]))
    service = serve(status=500)
    wms = {"worldcover": {"wms": {"url": f"{service.url}/wms", "version": "1.3.0", "layers": "a"}}}
    cache = PictureCache(tmp_path / "pictures", wms)
    first = cache.get(row)
    assert first.origin == "source"
    assert "the service answers 500" in first.why
    requests_before = len(service.requests)
    assert cache.get(row).why == first.why
    assert len(service.requests) == requests_before  # cached for an hour
    monkeypatch.setattr(picture_cache, "STAND_IN_LIFETIME_S", 0.0)
    assert cache.get(row).origin == "source"
    assert len(service.requests) > requests_before  # then requested again
    monkeypatch.setattr(picture_cache, "SLOW_S", -1.0)  # every failure counts as a slow one
    cache.get(next_row)
    requests_before = len(service.requests)
    resting = cache.get(row)
    assert "the service is paused" in resting.why
    assert resting.origin == "source"
    assert len(service.requests) == requests_before


def test_cached_pictures_stay_below_their_limit(run, tmp_path):
    version = Version(str(run / "db"), run / "cache")
    cache = PictureCache(tmp_path / "pictures", {}, max_bytes=300_000)
    for row in (chip.to_json() for chip in version.matrix.facts(range(20))):
        assert cache.get(row).origin == "source"
    cached_bytes = sum(p.stat().st_size for p in (tmp_path / "pictures").iterdir())
    assert 0 < cached_bytes <= 300_000
    assert PictureCache(tmp_path / "pictures", {})._bytes == cached_bytes


def test_a_damaged_picture_is_made_again(run, tmp_path, caplog):
    """Each kind of damage to a cached file, and a file that is no picture at all."""
    version = Version(str(run / "db"), run / "cache")
    row = version.matrix.facts([0])[0].to_json()
    cache = PictureCache(tmp_path / "pictures", {})
    png = cache.get(row).png
    (path,) = (tmp_path / "pictures").iterdir()
    plain = io.BytesIO()
    Image.new("RGB", (256, 256)).save(plain, "PNG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    cuts = (b"", png[:-20], png[: len(png) // 2])
    for data in (*cuts, bytes(len(png)), bytes(flipped), b"no picture", plain.getvalue()):
        path.write_bytes(data)
        caplog.clear()
        assert cache.get(row) == picture_cache.CachedPicture(png, "source", pictures.NO_SERVICE)
        assert f"{path}: a damaged picture of the cache is made again" in caplog.text
        assert path.read_bytes() == png


def test_an_intact_picture_is_taken_from_the_cache(run, tmp_path, monkeypatch):
    version = Version(str(run / "db"), run / "cache")
    row = version.matrix.facts([0])[0].to_json()
    cache = PictureCache(tmp_path / "pictures", {})
    first = cache.get(row)
    monkeypatch.setattr(pictures, "picture", None)
    assert cache.get(row) == first
