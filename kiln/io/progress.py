"""Progress of a long loop: a bar on a terminal, a line every 30 s in a log file."""

import logging
import sys
import time

from tqdm import tqdm

LOG_INTERVAL_S = 30.0
log = logging.getLogger(__name__)


class Progress:
    """A count of chips, or of other units, up to `total`.

    Attributes:
        total: Chips that are expected.
        unit: Name of what is counted.
        embeds: Whether chips are encoded, so that the rate is that of the encoded ones and not of all.
        done: Chips that are embedded, skipped or failed.
        embedded: Chips that were encoded.
    """

    def __init__(self, total: int, label: str, *, embeds: bool = True, unit: str = "chip") -> None:
        self.total, self.label, self.embeds, self.unit = total, label, embeds, unit
        self.done = self.embedded = self._resumed = 0
        self._start = self._logged = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=label, unit=unit, smoothing=0.1, dynamic_ncols=True)

    def advance(self, done: int, *, embedded: int = 0) -> None:
        """Count `done` more chips, `embedded` of them encoded."""
        self.done += done
        self.embedded += embedded
        if self._bar is not None:
            if self.embeds:  # the bar shows the rate of all chips itself
                self._bar.set_postfix_str(f"{self.rate:.1f} embedded/s", refresh=False)
            self._bar.update(done)
        elif (now := time.monotonic()) - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            seconds_left = (self.total - self.done) * (now - self._start) / max(self.done - self._resumed, 1)
            log.info(
                "%s: %d of %d %ss (%.0f%%), %.1f %s/s, %s left",
                self.label, self.done, self.total, self.unit, 100 * self.done / max(self.total, 1), self.rate,
                "embedded" if self.embeds else f"{self.unit}s",
                _duration(seconds_left),
            )  # fmt: skip

    def resume(self, done: int) -> None:
        """Count chips of an earlier run's checkpoints; they do not enter the rate."""
        self.done += done
        self._resumed += done
        if self._bar is not None:
            self._bar.initial += done
            self._bar.n += done
            self._bar.refresh()

    def grow(self, more: int) -> None:
        """Expect `more` chips than before; a negative number is fewer."""
        self.total += more
        if self._bar is not None:
            self._bar.total = self.total

    @property
    def rate(self) -> float:
        """Chips per second since the start: encoded ones, if chips are encoded."""
        return (self.embedded if self.embeds else self.done - self._resumed) / max(time.monotonic() - self._start, 1e-9)

    def close(self) -> None:
        """Finish the bar's line on a terminal."""
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours} h {m:02d} min" if hours else f"{m} min {s:02d} s"
