"""Progress of a long loop: a bar on a terminal, a line every 30 s in a log file."""

import logging
import sys
import time

from tqdm import tqdm

EVERY = 30.0  # seconds between lines of a log file
log = logging.getLogger(__name__)


class Progress:
    """Counts up to `total`; `done` counts everything settled, `embedded` what went through the encoder."""

    def __init__(self, total: int, what: str) -> None:
        self.total, self.what = total, what
        self.done = self.embedded = self._kept = 0
        self.start = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=what, unit="chip", smoothing=0.1, dynamic_ncols=True)

    def advance(self, done: int, *, embedded: int = 0) -> None:
        """`done` more settled, `embedded` of them encoded."""
        self.done += done
        self.embedded += embedded
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.rate:.1f} embedded/s", refresh=False)
            self._bar.update(done)
        elif (now := time.monotonic()) - self._said >= EVERY:
            self._said = now
            left = (self.total - self.done) * (now - self.start) / max(self.done - self._kept, 1)
            log.info(
                "%s: %d of %d chips (%.0f%%), %.1f embedded/s, %s left",
                self.what, self.done, self.total, 100 * self.done / max(self.total, 1), self.rate, _duration(left),
            )  # fmt: skip

    def keep(self, done: int) -> None:
        """`done` were settled by an earlier try: they say nothing of the pace."""
        self.done += done
        self._kept += done
        if self._bar is not None:
            self._bar.initial += done
            self._bar.n += done
            self._bar.refresh()

    def grow(self, more: int) -> None:
        """Expect `more` chips than before, or fewer."""
        self.total += more
        if self._bar is not None:
            self._bar.total = self.total

    @property
    def rate(self) -> float:
        """Chips encoded per second since the start."""
        return self.embedded / max(time.monotonic() - self.start, 1e-9)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s"
