"""Batches on a GPU: copies in, encoding and copies out of neighbouring batches overlap.

A batch's raw integers travel from page-locked memory while the batch before is encoded. One recorded CUDA graph is
replayed for every batch, and the vectors come back without a wait on the host.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kiln.formats.arrays import AnyArray
from kiln.model.batch import InputBatch

WARM_UP_RUNS = 3  # before a graph is recorded, as torch's notes on CUDA graphs require
MAX_GRAPHS = 4  # recorded; a run needs one, or one for each pixel size

Run = Callable[[InputBatch, float], dict[str, Tensor]]


class Slot:
    """Memory for one batch under way: page-locked on the host, and on the device."""

    def __init__(self, size: int, like: AnyArray, device: torch.device) -> None:
        self.host = InputBatch.empty(size, like, pin_memory=True)
        self.device = InputBatch.empty(size, like, device=device)
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no annotation
        self.done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no annotation
        self.results: dict[str, Tensor] = {}


class RecordedRun:
    """A batch's way through the encoder as a CUDA graph, with the tensors that it reads and writes."""

    def __init__(self, run: Run, like: InputBatch, gsd: float, stream: torch.cuda.Stream) -> None:
        zeros = (torch.zeros_like(tensor) for tensor in (like.pixels, like.time, like.place))
        self.inputs = InputBatch(*zeros)
        torch.cuda.synchronize(like.pixels.device)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                run(self.inputs, gsd)
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream):
            self.results = run(self.inputs, gsd)


class OverlappedRuns:
    """Runs of neighbouring batches on one GPU, at most SLOTS of them under way."""

    SLOTS = 2

    def __init__(self, device: torch.device, run: Run) -> None:
        self.device, self.run = device, run
        self.copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no annotation
        self.work = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no annotation
        self.slots: list[Slot] = []
        self.next_slot = 0
        self._graphs: dict[float, RecordedRun] = {}  # by pixel size

    def start(
        self, fill: Callable[[InputBatch], None], like: AnyArray, size: int, gsd: float
    ) -> Callable[[], dict[str, Tensor]]:
        """Start a batch.

        Args:
            fill: Writes the batch's chips into page-locked memory.
            like: Pixels [C, H, W] of a chip, for shape and dtype.
            size: Places of the batch.
            gsd: Pixel size in metres.

        Returns:
            A function that waits for the batch and returns its vectors on the host, valid until the slot's next batch.
        """
        if not self.slots or not self.slots[0].host.fits(like):
            torch.cuda.synchronize(self.device)
            self.slots = [Slot(size, like, self.device) for _ in range(self.SLOTS)]
            self._graphs.clear()
        slot = self.slots[self.next_slot]
        self.next_slot = (self.next_slot + 1) % self.SLOTS
        slot.done.synchronize()  # the slot's last batch is finished
        fill(slot.host)
        with torch.cuda.stream(self.copies):
            slot.device.copy_from(slot.host)
            slot.arrived.record()
        recorded = self._recorded(slot.device, gsd)
        with torch.cuda.stream(self.work):
            slot.arrived.wait()
            recorded.inputs.copy_from(slot.device)
            recorded.graph.replay()
            for name, values in recorded.results.items():
                if name not in slot.results:
                    slot.results[name] = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                slot.results[name].copy_(values, non_blocking=True)
            slot.done.record()

        def collect() -> dict[str, Tensor]:
            slot.done.synchronize()
            return slot.results

        return collect

    def _recorded(self, like: InputBatch, gsd: float) -> RecordedRun:
        if gsd not in self._graphs:
            while len(self._graphs) >= MAX_GRAPHS:
                torch.cuda.synchronize(self.device)
                self._graphs.pop(next(iter(self._graphs)))
            self._graphs[gsd] = RecordedRun(self.run, like, gsd, self.work)
        return self._graphs[gsd]
