"""Pictures of Sentinel-2's chips."""

from dataclasses import astuple

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.warp import transform_bounds

from kiln.archives.registry import PICTURE_SIZE_PX as SIZE
from kiln.archives.sentinel2 import picture
from kiln.archives.sentinel2.picture import STRETCH, read_picture
from kiln.archives.sentinel2.scene import SceneGrid
from kiln.formats.embeddings_file import bounding_boxes
from tests.support.items import CORNER, plane, write_item


@pytest.mark.parametrize(("epsg", "west"), [(32660, 818_000.0), (32601, 160_000.0)])
def test_a_chip_across_the_antimeridian_shows_its_own_pixels(tmp_path, epsg, west):
    """The brightness of the scene grows eastwards by one step per kilometre, so a torn or larger picture is noticed."""
    scene = np.tile(np.arange(2560, dtype=np.uint16) // 100 * 100 + 500, (512, 1))
    transform = Affine(10, 0, west, 0, -10, 1_112_000)
    for band in ("B02", "B03", "B04"):
        with rasterio.open(
            tmp_path / f"T_{band}.tif", "w", driver="GTiff", width=2560, height=512, count=1, dtype="uint16",
            crs=f"EPSG:{epsg}", transform=transform,
        ) as out:  # fmt: skip
            out.write(scene, 1)
    grid = SceneGrid(512, 2560, transform, f"EPSG:{epsg}", 256)
    footprints, _ = grid.footprints()
    over = [at for at in np.ndindex(footprints.shape) if footprints[at].geom_type == "MultiPolygon"]
    assert over
    black, white, gamma = astuple(STRETCH)
    for r, c in over:
        (box,) = bounding_boxes(footprints[r : r + 1, c])
        assert box[0] > box[2]
        shown = read_picture(str(tmp_path / "T_B04.tif"), tuple(box.tolist()))
        want = ((scene[:1, c * 256 : c * 256 + 256] - black) / (white - black)) ** gamma * 255
        middle = shown[SIZE // 2, :, 0].astype(int)
        assert (np.diff(middle) >= 0).all()  # eastwards
        assert np.abs(middle[[8, 128, 247]] - want[0, [8, 128, 247]]).max() < 12
        assert 1 < len(np.unique(middle)) <= 5


@pytest.mark.parametrize(
    ("added", "properties"),
    [
        (1000, {"s2:processing_baseline": "04.00"}),
        (0, {"s2:processing_baseline": "04.00", "earthsearch:boa_offset_applied": True}),
        (
            0,
            {"s2:processing_baseline": "04.00"},
        ),  # already subtracted, although no flag states it: the pixels are too dark
    ],
)
def test_pictures_have_no_offset(tmp_path, added, properties):
    ground = {b: plane(64, n, high=3000) for n, b in enumerate(("blue", "green", "red"))}
    old = write_item(tmp_path / "old", bands=ground)
    new = write_item(
        tmp_path / "new", bands={b: p + np.uint16(added) for b, p in ground.items()}, properties=properties
    )
    west, north = CORNER
    box = transform_bounds("EPSG:32629", "EPSG:4326", west, north - 640, west + 640, north)
    shown = [read_picture(str(made.folder / "B04.tif"), box) for made in (old, new)]
    assert np.ptp(shown[0]) > 200
    np.testing.assert_array_equal(*shown)
    (new.folder / f"{new.entry['id']}.json").rename(new.folder / "elsewhere.json")
    picture._item_has_offset.cache_clear()
    pale = read_picture(str(new.folder / "B04.tif"), box)
    assert (pale.mean() > shown[0].mean() + 30) == (added > 0), "without the item the offset is unknown"
