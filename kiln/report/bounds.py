"""Numbers that are known only in part: exact, about, or at most. Sums keep the word of their least certain part."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

Word = Literal["", "about", "at most"]
WORDS: tuple[Word, ...] = ("", "about", "at most")  # from the most certain
MIN_SHARDS = 5  # finished ones from which others are extrapolated
MAX_ERROR = 0.1  # relative, at STANDARD_ERRORS; more is not called an estimate
STANDARD_ERRORS = 3  # few finished shards may look alike by chance


@dataclass(frozen=True)
class Bounded:
    """A number and what it says: exactly, about or at most so much."""

    value: float
    word: Word = ""

    def __add__(self, other: Self) -> Self:
        return type(self)(self.value + other.value, max(self.word, other.word, key=WORDS.index))

    def __mul__(self, factor: float) -> Self:
        return type(self)(self.value * factor, self.word)

    def text(self, form: Callable[[float], str]) -> str:
        """Return the number as a form writes it, behind its word. Nothing is exactly nothing."""
        return f"{self.word} {form(self.value)}".strip() if self.value else form(0)


NOTHING = Bounded(0)


def extrapolate(finished: Sequence[tuple[float, float]], left: Sequence[float]) -> Bounded:
    """Return the sum over unfinished shards of a number of which the plan knows the most there can be.

    The finished shards' ratio of outcome and plan is applied to the others (the ratio estimator for clusters; Cochran,
    Sampling Techniques, 1977, chapter 6). That takes them as a sample of all, which is right for most orders of a run.

    Args:
        finished: Planned and real number of each finished shard.
        left: Planned numbers of the others.

    Returns:
        About the sum, if STANDARD_ERRORS are at most MAX_ERROR of the whole; else at most the planned sum.
    """
    planned_left = sum(left)
    planned = sum(p for p, _ in finished)
    at_most = Bounded(planned_left, "at most") if planned_left else NOTHING
    if len(finished) < MIN_SHARDS or not planned or not planned_left:
        return at_most
    real = sum(r for _, r in finished)
    ratio = real / planned
    variance = sum((r - ratio * p) ** 2 for p, r in finished) / (len(finished) - 1)
    of_ratio = planned_left / planned * math.sqrt(len(finished) * variance)
    error = math.hypot(of_ratio, math.sqrt(len(left) * variance))
    about = min(ratio * planned_left, planned_left)
    return Bounded(about, "about") if STANDARD_ERRORS * error <= MAX_ERROR * (real + about) else at_most
