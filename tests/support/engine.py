"""A fake encoder, and the pipeline with defaults for most of its options."""

import threading
import time

import torch

from kiln.engine import pipeline
from kiln.engine.pipeline import Budget
from kiln.model.embedder import EmbedPolicy


def threads_left() -> list[str]:
    """Return the names of the engine's threads that still run after ten seconds."""
    end = time.monotonic() + 10
    while True:
        left = [t.name for t in threading.enumerate() if t.name.startswith(("read", "chips"))]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.002)


class Echo:
    """A fake encoder: the token of a chip is the value of its first pixel, repeated in four dimensions."""

    cls_token = torch.zeros(1, 1, 4)

    def __init__(self, values: dict[int, float] | None = None, fails_at: int = -1) -> None:
        self.values, self.fails_at, self.sizes = values or {}, fails_at, []

    def __call__(self, pixels: torch.Tensor, **sensor: object) -> torch.Tensor:
        self.sizes.append(len(pixels))
        if len(self.sizes) - 1 == self.fails_at:
            raise RuntimeError("out of memory")
        first = [self.values.get(int(v), float(v)) for v in pixels[:, 0, 0, 0]]
        return torch.tensor(first).view(-1, 1, 1).expand(-1, 5, 4)


def embed(
    source, encoder, path, *, vector_dtype="float32", batch=4, threads=2, ahead=1 << 20, allowed=1.0, dim=4,
    embedding="class", patches=None,
):  # fmt: skip
    return pipeline.embed(
        source,
        lambda: encoder,
        dim,
        path,
        {"patches": {"shape": [2, 2, dim], "vector_dtype": "float16"}} if patches else {},
        policy=EmbedPolicy("zeros", 10.0, vector_dtype, embedding, patches is not None),
        budget=Budget(batch, threads, ahead),
        max_failed_fraction=allowed,
        patch_path=patches,
    )
