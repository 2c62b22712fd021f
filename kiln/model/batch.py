"""A batch of chips as the encoder's inputs, on the host or on a device."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from kiln.formats.arrays import AnyArray
from kiln.formats.records import Chip
from kiln.model.clay import encode_latlon, encode_time


@dataclass
class InputBatch:
    """The inputs of a batch of fixed size.

    Attributes:
        pixels: Raw digital numbers [B, C, H, W].
        time: [B, 4] float32, as `encode_time` returns it.
        place: [B, 4] float32, as `encode_latlon` returns it.
    """

    pixels: Tensor
    time: Tensor
    place: Tensor

    @classmethod
    def empty(cls, size: int, like: AnyArray, **options: Any) -> Self:
        """Return a batch of zeros.

        Args:
            size: Chips of the batch.
            like: Pixels [C, H, W] of a chip, for shape and dtype.
            options: Options of torch.zeros, as `device` and `pin_memory`.
        """
        pixels = torch.zeros((size, *like.shape), dtype=torch.from_numpy(like[:0]).dtype, **options)
        time, place = (torch.zeros((size, 4), **options) for _ in range(2))
        return cls(pixels, time, place)

    def fits(self, like: AnyArray) -> bool:
        """Return whether chips with the shape and dtype of `like` [C, H, W] fit into this batch."""
        return self.pixels.shape[1:] == like.shape and self.pixels.dtype == torch.from_numpy(like[:0]).dtype

    def fill(self, chips: list[Chip], *, use_metadata: bool) -> None:
        """Copy chips into the batch; the places after the last chip are zeros.

        Args:
            chips: At most as many chips as the batch has places.
            use_metadata: Whether the encoder is given date and place of the chips.
        """
        pixels, time, place = (tensor.numpy() for tensor in (self.pixels, self.time, self.place))
        time[:], place[:] = 0, 0
        pixels[len(chips) :] = 0
        for i, chip in enumerate(chips):
            pixels[i] = chip.pixels
            if use_metadata and chip.datetime is not None:  # date and place are both given, or neither
                time[i], place[i] = encode_time(chip.datetime), encode_latlon(*chip.center)

    def copy_from(self, other: "InputBatch") -> None:
        """Copy the numbers of another batch, from page-locked memory without waiting."""
        pairs = ((self.pixels, other.pixels), (self.time, other.time), (self.place, other.place))
        for own, source in pairs:
            own.copy_(source, non_blocking=True)
