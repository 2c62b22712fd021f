"""A sensor as the model sees it: bands in file order, their normalisation and wavelengths, the trained pixel size."""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Sensor:
    """The bands of a sensor.

    Attributes:
        name: The sensor's name in the model's configuration.
        bands: Band names in file order.
        mean: Mean of the digital numbers, per band.
        std: Standard deviation of the digital numbers, per band.
        wavelengths: Centre wavelength in micrometres, per band.
        gsd: Pixel size in metres that the model was trained with.
    """

    name: str
    bands: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    wavelengths: tuple[float, ...]
    gsd: float

    def select(self, name: str, bands: tuple[str, ...]) -> Self:
        """Return the sensor that has only `bands`, in that order."""
        at = [self.bands.index(band) for band in bands]

        def take(values: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(values[i] for i in at)

        return type(self)(name, bands, take(self.mean), take(self.std), take(self.wavelengths), self.gsd)
