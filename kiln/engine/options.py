"""The options of an embedding job. Reading a command line imports this module, so it imports no torch."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kiln.errors import ConfigError
from kiln.formats import vectors


@dataclass(frozen=True)
class EmbedOptions:
    """The options of an embedding job. The first three change vectors and are part of the fingerprint.

    Attributes:
        vector_dtype: Type of the vectors in the file: `float32`, `float16` or `int8`.
        embedding: Vectors to keep: `class` (the class token), `mean` (of the patch tokens) or `both`.
        patches: Whether to write all patch tokens too, in a file of their own: 2 MB a chip of 256 px.
        max_failed_fraction: Largest fraction of failed units, 0 to 1; more fails the job.
        batch_size: Chips encoded together, 1 or more.
        threads: CPU threads of the encoder; 0: one for each core.
        read_threads: Threads that read and decode ahead of the encoder, 1 or more.
        read_ahead_mb: Megabytes of pixels read ahead of the encoder.
        device: `cpu`, `cuda` (a GPU that no other job holds) or `cuda:N`.

    Raises:
        ConfigError: If an option is out of its range.
    """

    vector_dtype: vectors.VectorDtype = "float16"
    embedding: vectors.Embedding = "class"
    patches: bool = False
    max_failed_fraction: float = 0.5
    batch_size: int = 8
    threads: int = 0
    read_threads: int = 4
    read_ahead_mb: int = 512
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._check_choice("vector_dtype", vectors.VECTOR_DTYPES)
        self._check_choice("embedding", vectors.EMBEDDINGS)
        for name, minimum in (("batch_size", 1), ("threads", 0), ("read_threads", 1), ("read_ahead_mb", 0)):
            if getattr(self, name) < minimum:
                raise ConfigError(f"{name}: expected {minimum} or more, got {getattr(self, name)}. Correct it.")
        if not 0 <= self.max_failed_fraction <= 1:
            raise ConfigError(
                f"max_failed_fraction: expected a fraction from 0 to 1, got {self.max_failed_fraction}. Correct it."
            )
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device: expected cpu, cuda or cuda:N, got {self.device}. Correct it.")

    def _check_choice(self, name: str, choices: Iterable[str]) -> None:
        if getattr(self, name) not in choices:
            raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}. Correct it.")
