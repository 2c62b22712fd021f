"""Requests to stores and the bytes that their answers bring, counted for this process."""

import threading
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Traffic:
    """A number of answered requests, and of bytes that were read with them."""

    requests: int = 0
    read_bytes: int = 0

    def __add__(self, other: Self) -> Self:
        return type(self)(self.requests + other.requests, self.read_bytes + other.read_bytes)

    def __sub__(self, other: Self) -> Self:
        return type(self)(self.requests - other.requests, self.read_bytes - other.read_bytes)


class TrafficCounter:
    """The traffic of all threads since the process began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Traffic()

    @property
    def total(self) -> Traffic:
        """The traffic so far."""
        return self._total

    def count(self, read_bytes: int, requests: int = 1) -> None:
        """Count answered requests: one that read so many bytes, and those before it that were retried."""
        with self._lock:
            self._total += Traffic(requests, read_bytes)


COUNTER = TrafficCounter()
