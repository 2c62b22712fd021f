"""The sensors that Clay v1.5 was trained on, for the archives that Kiln reads.

Source: Clay v1.5, configs/metadata.yaml (means and standard deviations of digital numbers, micrometres, metres).
"""

from kiln.formats.sensor import Sensor

SENTINEL2 = Sensor(
    "sentinel-2-l2a",
    ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22"),
    (1105, 1355, 1552, 1887, 2422, 2630, 2743, 2785, 2388, 1835),
    (1809, 1757, 1888, 1870, 1732, 1697, 1742, 1648, 1470, 1379),
    (0.493, 0.56, 0.665, 0.704, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19),
    10.0,
)
WORLDCOVER = SENTINEL2.select("worldcover-s2-rgbnir", ("red", "green", "blue", "nir"))
NAIP = Sensor(
    "naip",
    ("red", "green", "blue", "nir"),
    (110.16, 115.41, 98.15, 139.04),
    (47.23, 39.82, 35.43, 49.86),
    (0.65, 0.56, 0.48, 0.842),
    1.0,
)
