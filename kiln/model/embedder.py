"""The embedder: chips in, vectors out, on a CPU or a GPU.

All batches have one shape, the last one padded, so that a vector does not depend on the other chips of its batch.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kiln.formats import patch_file, vectors
from kiln.formats.records import Chip
from kiln.formats.sensor import Sensor
from kiln.model.batch import InputBatch
from kiln.model.clay import ClayEncoder
from kiln.model.cuda import OverlappedRuns


def keep_memory(max_bytes: int = (1 << 31) - 1) -> bool:
    """Make malloc keep freed blocks of at most `max_bytes`; return False unless malloc is glibc's.

    By default glibc (mallopt(3)) returns large blocks to the system at once, and the pages of each layer's activations
    are faulted in again: a seventh of the encoder's time on a CPU (tests/bench/settings.py).
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    accepted = mallopt(mmap_threshold, max_bytes), mallopt(trim_threshold, max_bytes)
    return accepted == (1, 1)


@dataclass(frozen=True)
class EmbedPolicy:
    """The encoder's inputs besides pixels, and the outputs that are written. The fingerprint depends on it.

    Attributes:
        metadata: Whether the encoder is given date and place of each chip (`as_trained`) or `zeros`.
        gsd: Pixel size that the encoder is given, in metres; None gives each chip's own.
        vector_dtype: Dtype of the vectors in the file.
        embedding: Kind of vectors.
        patches: Whether patch vectors are written too.
    """

    metadata: Literal["zeros", "as_trained"] = "as_trained"
    gsd: float | None = 10.0
    vector_dtype: vectors.VectorDtype = "float32"
    embedding: vectors.Embedding = "class"
    patches: bool = False


class Embedder:
    """An encoder with a sensor's normalisation and a run's policy.

    Attributes:
        size: Chips of a batch at most.
        ahead: Batches that may be started before the first of them is collected.
    """

    def __init__(self, encoder: ClayEncoder, sensor: Sensor, policy: EmbedPolicy, size: int) -> None:
        self.encoder, self.policy, self.size = encoder, policy, size
        self.device = encoder.cls_token.device
        self.mean = torch.tensor(sensor.mean, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(sensor.std, device=self.device).view(-1, 1, 1)
        self.wavelengths = torch.tensor(sensor.wavelengths)
        self.ahead = 0
        self._inputs: InputBatch | None = None
        self._gpu: OverlappedRuns | None = None
        if self.device.type == "cpu":
            keep_memory()
        if self.device.type == "cuda":
            self._gpu = OverlappedRuns(self.device, self._run)
            self.ahead = OverlappedRuns.SLOTS - 1

    def __call__(self, chips: list[Chip]) -> vectors.Columns:
        """Return the vectors of chips; see `start`."""
        return self.start(chips)()

    def start(self, chips: list[Chip]) -> Callable[[], vectors.Columns]:
        """Start a batch.

        On a CPU the batch is encoded here. On a GPU at most `ahead` others may be under way.

        Args:
            chips: At most `size` chips of one shape and, if the policy has no gsd, one pixel size.

        Returns:
            A function that waits for the batch and returns its vectors [n, D] float32 by column, and `patches`
            [n, L * D] float16 if the policy has them.
        """
        gsd = chips[0].pixel_size if self.policy.gsd is None else self.policy.gsd
        like = chips[0].pixels

        def fill(inputs: InputBatch) -> None:
            inputs.fill(chips, use_metadata=self.policy.metadata == "as_trained")

        if self._gpu:
            collect = self._gpu.start(fill, like, self.size, gsd)
        else:
            if self._inputs is None or not self._inputs.fits(like):
                self._inputs = InputBatch.empty(self.size, like)
            fill(self._inputs)
            results = self._run(self._inputs, gsd)
            collect = lambda: results  # noqa: E731
        n = len(chips)
        return lambda: {name: values[:n].numpy().copy() for name, values in collect().items()}

    @torch.inference_mode()
    def _run(self, inputs: InputBatch, gsd: float) -> dict[str, Tensor]:
        """Return the outputs of a batch by column; means are taken in float32."""
        pixels = inputs.pixels.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)
        kinds = vectors.KINDS[self.policy.embedding]
        class_only = not self.policy.patches and set(kinds.values()) == {"class"}
        tokens = self.encoder(
            pixels,
            wavelengths=self.wavelengths,
            gsd=gsd,
            time=inputs.time,
            latlon=inputs.place,
            class_only=class_only,
        )
        outputs = {}
        for name, kind in kinds.items():
            outputs[name] = tokens[:, 0].float() if kind == "class" else tokens[:, 1:].mean(1, dtype=torch.float32)
        if self.policy.patches:
            outputs[patch_file.COLUMN] = tokens[:, 1:].to(torch.float16).flatten(1)
        return outputs
