"""What each sensor's pixels mean to the model: bands in file order, normalisation, wavelengths, trained gsd.

Source: Clay v1.5, configs/metadata.yaml (means and standard deviations of digital numbers, micrometres, metres).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sensor:
    """`mean` and `std` of digital numbers and `wavelengths` in micrometres per band; `gsd` in metres, as trained."""

    name: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    wavelengths: tuple[float, ...]
    gsd: float


SENTINEL2 = Sensor(
    "sentinel-2-l2a",
    ("blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "swir16", "swir22"),
    (1105, 1355, 1552, 1887, 2422, 2630, 2743, 2785, 2388, 1835),
    (1809, 1757, 1888, 1870, 1732, 1697, 1742, 1648, 1470, 1379),
    (0.493, 0.56, 0.665, 0.704, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19),
    10.0,
)


def select(sensor: Sensor, name: str, bands: tuple[str, ...]) -> Sensor:
    """The sensor that has only `bands`, in that order."""
    at = [sensor.bands.index(b) for b in bands]

    def take(values: tuple) -> tuple:
        return tuple(values[i] for i in at)

    return Sensor(name, bands, take(sensor.mean), take(sensor.std), take(sensor.wavelengths), sensor.gsd)


WORLDCOVER = select(SENTINEL2, "worldcover-s2-rgbnir", ("red", "green", "blue", "nir"))
NAIP = Sensor(
    "naip",
    ("red", "green", "blue", "nir"),
    (110.16, 115.41, 98.15, 139.04),
    (47.23, 39.82, 35.43, 49.86),
    (0.65, 0.56, 0.48, 0.842),
    1.0,
)
SENSORS = {"worldcover": WORLDCOVER, "naip": NAIP, "sentinel2": SENTINEL2}
