"""Chips as GeoJSON, and sets of marks."""

import pytest
import shapely

from kiln.errors import ConfigError
from kiln.explorer.chips import ChipFacts, Hit
from kiln.explorer.footprints import Footprints
from kiln.explorer.results import as_geojson, read_marks
from kiln.formats.bounding_box import BoundingBox


def test_a_box_over_the_antimeridian_is_exported_in_two_parts():
    chip = ChipFacts("a", "toy", 2021, None, "item", "a.tif", 0.0, None, 180.0, 1.5, (179.9, 1.0, -179.9, 2.0))
    footprints = Footprints({"a": shapely.geometry.shape(BoundingBox(*chip.bbox).to_geojson())}, "box")
    (feature,) = as_geojson([Hit(chip, 0.5)], footprints)["features"]
    assert (feature["properties"]["rank"], feature["properties"]["footprint"]) == (1, "box")
    assert feature["bbox"] == [179.9, 1.0, -179.9, 2.0]
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert [p[0][0][0] for p in feature["geometry"]["coordinates"]] == [179.9, -180.0]


def test_sets_of_marks_are_read():
    def mark(chip_id, kind):
        return {"type": "Feature", "geometry": None, "properties": {"chip_id": chip_id, "mark": kind}}

    several = {"type": "FeatureCollection", "features": [mark("b", "like"), mark("a", "dislike"), mark("c", "like")]}
    assert read_marks(several) == (("b", "c"), ("a",))
    for wrong in (None, [], {}, {"type": "FeatureCollection"}, {"type": "FeatureCollection", "features": [3]},
                  {"type": "FeatureCollection", "features": [mark("a", "love")]},
                  {"type": "FeatureCollection", "features": [mark(3, "like")]},
                  {"type": "Polygon", "coordinates": []}):  # fmt: skip
        with pytest.raises(ConfigError, match="marks"):
            read_marks(wrong)
