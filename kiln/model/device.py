"""Which card a job works on: of several on a machine each takes one that no other job holds."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.errors import ConfigError

POLL = 1.0  # seconds between looks for a free card
log = logging.getLogger(__name__)


def cards() -> int:
    """Cards that this process may use."""
    import torch

    return torch.cuda.device_count()


@contextmanager
def claimed(device: str, count: int | None = None, folder: Path | None = None) -> Iterator[str]:
    """The device to work on: `cpu` and `cuda:N` as they are; for `cuda` a card that no other job here holds.

    It is held until the end of the block or of the process, by a lock on a file in `folder`, and waited for where all
    are held. `count` cards there are. Raises ConfigError where there is none.
    """
    if device == "cpu":
        yield device
        return
    count = cards() if count is None else count
    number = device.partition(":")[2]
    if not count or (number and int(number) >= count):
        raise ConfigError(f"--device {device}: this machine shows torch {count} cards; resources.device: cpu")
    if number:
        yield device
        return
    folder = folder or Path(tempfile.gettempdir()) / f"kiln-cards-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) == count else [str(n) for n in range(count)]  # as other jobs call the same card
    said = False
    while True:
        for n, name in enumerate(names):
            with (folder / f"{name.strip()}.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield f"cuda:{n}"
                return
        if not said:
            log.info("all %d cards are held by other jobs; waiting for one", count)
            said = True
        time.sleep(POLL)
