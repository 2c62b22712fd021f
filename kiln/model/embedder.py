"""Chips in, vectors out: the encoder with a sensor's normalisation, on a CPU or a GPU.

Batches have one shape, the last one padded, so that a vector is the same in any company. On a GPU a batch's raw
integers travel from page-locked memory while the one before is encoded; they are normalised there, inside one recorded
graph that is replayed for every batch, and the vectors come back without anybody waiting for them.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kiln.formats import patch_file as patches
from kiln.formats import vectors
from kiln.formats.records import Chip
from kiln.formats.sensor import Sensor
from kiln.model.clay import ClayEncoder, encode_latlon, encode_time

WARM_UP = 3  # runs before a graph is recorded, as torch's notes on CUDA graphs want
GRAPHS = 4  # recorded graphs kept; a run has one, or one for each pixel size


def keep_memory(upto: int = (1 << 31) - 1) -> bool:
    """Have malloc keep blocks of up to so many bytes when they are freed; False where it is not glibc's.

    Of its own accord glibc (mallopt(3)) gives large ones back at once, so that each layer's activations fault their
    pages in anew: a seventh of the encoder's time on a CPU (tests/bench/settings.py).
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    taken = mallopt(mmap_threshold, upto), mallopt(trim_threshold, upto)
    return taken == (1, 1)


@dataclass(frozen=True)
class Policy:
    """What the encoder is told besides pixels, and what is kept of its tokens; part of the fingerprint."""

    metadata: Literal["zeros", "as_trained"] = "as_trained"
    gsd: float | None = 10.0  # metres; None: each chip's own pixel size
    storage: vectors.Storage = "float32"
    embedding: vectors.Embedding = "class"
    patches: bool = False  # whether patch vectors are kept too


@dataclass
class Inputs:
    """A batch as the encoder takes it: raw pixels [B, C, H, W], time and place [B, 4] float32."""

    pixels: Tensor
    time: Tensor
    place: Tensor

    @classmethod
    def empty(cls, size: int, like: np.ndarray, **where: object) -> "Inputs":
        """Of `size` chips like this one [C, H, W]; `where` as torch.zeros takes it."""
        dtype = torch.from_numpy(like[:0]).dtype
        pixels = torch.zeros((size, *like.shape), dtype=dtype, **where)  # type: ignore[call-overload]
        time, place = (torch.zeros((size, 4), **where) for _ in range(2))  # type: ignore[call-overload]
        return cls(pixels, time, place)

    def fit(self, like: np.ndarray) -> bool:
        """Whether chips like this one find room."""
        return self.pixels.shape[1:] == like.shape and self.pixels.dtype == torch.from_numpy(like[:0]).dtype

    def fill(self, chips: list[Chip], policy: Policy) -> None:
        """Take the chips; what is left over of the batch is zeros."""
        pixels, time, place = (t.numpy() for t in (self.pixels, self.time, self.place))
        time[:], place[:] = 0, 0
        pixels[len(chips) :] = 0
        for i, chip in enumerate(chips):
            pixels[i] = chip.pixels
            if policy.metadata == "as_trained" and chip.datetime is not None:  # unknown together or not at all
                time[i], place[i] = encode_time(chip.datetime), encode_latlon(*chip.center)

    def copy_from(self, other: "Inputs") -> None:
        """The same numbers; from page-locked memory without waiting."""
        for mine, its in ((self.pixels, other.pixels), (self.time, other.time), (self.place, other.place)):
            mine.copy_(its, non_blocking=True)


class Embedder:
    """The encoder with one sensor's normalisation and one run's policy, for batches of at most `size` chips."""

    def __init__(self, encoder: ClayEncoder, sensor: Sensor, policy: Policy, size: int) -> None:
        self.encoder, self.policy, self.size = encoder, policy, size
        self.device = encoder.cls_token.device
        self.mean = torch.tensor(sensor.mean, device=self.device).view(-1, 1, 1)
        self.std = torch.tensor(sensor.std, device=self.device).view(-1, 1, 1)
        self.wavelengths = torch.tensor(sensor.wavelengths)
        self.ahead = 0  # batches that may be under way before the first of them is asked for
        self._inputs: Inputs | None = None
        self._gpu: Overlapped | None = None
        if self.device.type == "cpu":
            keep_memory()
        if self.device.type == "cuda":
            self._gpu = Overlapped(self.device, self._run)
            self.ahead = Overlapped.SLOTS - 1

    def __call__(self, chips: list[Chip]) -> vectors.Columns:
        """Vectors [n, D] float32 by column, and `patches` [n, L * D] float16 where they are kept."""
        return self.start(chips)()

    def start(self, chips: list[Chip]) -> Callable[[], vectors.Columns]:
        """Begin with a batch of chips of one shape; the value waits for the vectors and gives them.

        At most `ahead` others may be under way. On a CPU the work is done here.
        """
        gsd = chips[0].pixel_size if self.policy.gsd is None else self.policy.gsd
        if self._gpu:
            collect = self._gpu.start(lambda inputs: inputs.fill(chips, self.policy), chips[0].pixels, self.size, gsd)
        else:
            if self._inputs is None or not self._inputs.fit(chips[0].pixels):
                self._inputs = Inputs.empty(self.size, chips[0].pixels)
            self._inputs.fill(chips, self.policy)
            done = self._run(self._inputs, gsd)
            collect = lambda: done  # noqa: E731
        n = len(chips)
        return lambda: {name: values[:n].numpy().copy() for name, values in collect().items()}

    @torch.inference_mode()
    def _run(self, inputs: Inputs, gsd: float) -> dict[str, Tensor]:
        """What the policy keeps of a batch's tokens, by column; means are taken in float32."""
        x = inputs.pixels.to(torch.float32, copy=True).sub_(self.mean).div_(self.std)
        kinds = vectors.KINDS[self.policy.embedding]
        class_only = not self.policy.patches and set(kinds.values()) == {"class"}
        tokens = self.encoder(
            x,
            wavelengths=self.wavelengths,
            gsd=gsd,
            time=inputs.time,
            latlon=inputs.place,
            class_only=class_only,
        )
        kept = {}
        for name, kind in kinds.items():
            kept[name] = tokens[:, 0].float() if kind == "class" else tokens[:, 1:].mean(1, dtype=torch.float32)
        if self.policy.patches:
            kept[patches.COLUMN] = tokens[:, 1:].to(torch.float16).flatten(1)
        return kept


class Slot:
    """Room for one batch under way: on the host, page-locked, and on the device."""

    def __init__(self, size: int, like: np.ndarray, device: torch.device) -> None:
        self.host = Inputs.empty(size, like, pin_memory=True)
        self.device = Inputs.empty(size, like, device=device)
        self.arrived = torch.cuda.Event()
        self.done = torch.cuda.Event()
        self.results: dict[str, Tensor] = {}


class Overlapped:
    """Batches on a GPU: copies in, encoding and copies out of neighbouring batches at the same time."""

    SLOTS = 2

    def __init__(self, device: torch.device, run: Callable[[Inputs, float], dict[str, Tensor]]) -> None:
        self.device, self.run = device, run
        self.copies, self.work = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.slots: list[Slot] = []
        self.turn = 0
        self._graphs: dict[float, Recorded] = {}  # by pixel size

    def start(
        self, fill: Callable[[Inputs], None], like: np.ndarray, size: int, gsd: float
    ) -> Callable[[], dict[str, Tensor]]:
        """Begin with a batch that `fill` writes; the value waits for it and gives what it came to, on the host."""
        if not self.slots or not self.slots[0].host.fit(like):
            torch.cuda.synchronize(self.device)
            self.slots = [Slot(size, like, self.device) for _ in range(self.SLOTS)]
            self._graphs.clear()
        slot = self.slots[self.turn]
        self.turn = (self.turn + 1) % self.SLOTS
        slot.done.synchronize()  # its last batch has left it
        fill(slot.host)
        with torch.cuda.stream(self.copies):
            slot.device.copy_from(slot.host)
            slot.arrived.record()
        graph = self._recorded(slot.device, gsd)
        with torch.cuda.stream(self.work):
            slot.arrived.wait()
            graph.inputs.copy_from(slot.device)
            graph.graph.replay()
            for name, made in graph.results.items():
                if name not in slot.results:
                    slot.results[name] = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
                slot.results[name].copy_(made, non_blocking=True)
            slot.done.record()

        def collect() -> dict[str, Tensor]:
            slot.done.synchronize()
            return slot.results

        return collect

    def _recorded(self, like: Inputs, gsd: float) -> "Recorded":
        if gsd not in self._graphs:
            while len(self._graphs) >= GRAPHS:
                torch.cuda.synchronize(self.device)
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[gsd] = Recorded(self.run, like, gsd, self.work)
        return self._graphs[gsd]


class Recorded:
    """One shape's way through the encoder as a CUDA graph, with the tensors that it reads and writes."""

    def __init__(
        self,
        run: Callable[[Inputs, float], dict[str, Tensor]],
        like: Inputs,
        gsd: float,
        stream: torch.cuda.Stream,
    ) -> None:
        self.inputs = Inputs(torch.zeros_like(like.pixels), torch.zeros_like(like.time), torch.zeros_like(like.place))
        torch.cuda.synchronize(like.pixels.device)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run(self.inputs, gsd)
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.results = run(self.inputs, gsd)
