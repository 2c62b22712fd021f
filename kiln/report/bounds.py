"""Numbers that are known only in part: exact, about, or at most. Sums keep the word of their least certain part."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

Word = Literal["", "about", "at most"]
MIN_SHARDS = 5  # finished ones from which others are extrapolated
MAX_ERROR = 0.1  # relative, at STANDARD_ERRORS; more is not called an estimate
STANDARD_ERRORS = 3  # few finished shards may look alike by chance


@dataclass(frozen=True)
class Bounded:
    """A number and what it is: exactly, about or at most so much.

    Attributes:
        value: The number.
        word: What it is.
        most: The most that an estimate can be; the number itself otherwise.
    """

    value: float
    word: Word = ""
    most: float | None = None

    @property
    def bound(self) -> float:
        """The most that it can be."""
        return self.value if self.most is None else self.most

    def __add__(self, other: Self) -> Self:
        if "at most" in (self.word, other.word):
            return type(self)(self.bound + other.bound, "at most")
        if self.word == other.word == "":
            return type(self)(self.value + other.value)
        return type(self)(self.value + other.value, "about", self.bound + other.bound)

    def __mul__(self, factor: float) -> Self:
        most = None if self.most is None else self.most * factor
        return type(self)(self.value * factor, self.word, most)

    def text(self, form: Callable[[float], str]) -> str:
        """Return the number as a form writes it, behind its word. Nothing is exactly nothing."""
        return f"{self.word} {form(self.value)}".strip() if self.value else form(0)


NOTHING = Bounded(0)


def extrapolate(finished: Sequence[tuple[float, float]], left: Sequence[float], most: float | None = None) -> Bounded:
    """Return the sum over unfinished shards of a number that grows with a planned one.

    The finished shards' ratio of outcome and plan is applied to the others (the ratio estimator for clusters; Cochran,
    Sampling Techniques, 1977, chapter 6). That takes them as a sample of all, which is right for most orders of a run.

    Args:
        finished: Planned and real number of each finished shard.
        left: Planned numbers of the others.
        most: The most that the sum can be; None: the planned sum.

    Returns:
        About the sum, if STANDARD_ERRORS are at most MAX_ERROR of it; else `most`.
    """
    planned_left, planned = sum(left), sum(p for p, _ in finished)
    most = planned_left if most is None else most
    at_most = Bounded(most, "at most") if most else NOTHING
    if len(finished) < MIN_SHARDS or not planned or not planned_left:
        return at_most
    ratio = sum(r for _, r in finished) / planned
    variance = sum((r - ratio * p) ** 2 for p, r in finished) / (len(finished) - 1)
    of_ratio = planned_left / planned * math.sqrt(len(finished) * variance)
    error = math.hypot(of_ratio, math.sqrt(len(left) * variance))
    about = min(ratio * planned_left, most)
    return Bounded(about, "about", most) if STANDARD_ERRORS * error <= MAX_ERROR * about else at_most
