"""The device of a job: on a machine with several GPUs each job claims one that no other job holds."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kiln.errors import ConfigError

POLL_S = 1.0  # between two looks for a free GPU
log = logging.getLogger(__name__)


def gpu_count() -> int:
    """Return the number of GPUs that this process may use."""
    import torch

    return torch.cuda.device_count()


@contextmanager
def claim_device(device: str, count: int | None = None, lock_folder: Path | None = None) -> Iterator[str]:
    """Yield the device to work on; wait for a GPU if other jobs of this machine hold all of them.

    A GPU is held by a lock on a file, until the end of the block or of the process.

    Args:
        device: `cpu` and `cuda:N` are yielded as they are; `cuda` claims a GPU.
        count: Number of GPUs; None asks torch.
        lock_folder: Where the lock files lie; None takes a folder in the system's temporary folder.

    Yields:
        `cpu` or `cuda:N`.

    Raises:
        ConfigError: If there is no such GPU.
    """
    if device == "cpu":
        yield device
        return
    count = gpu_count() if count is None else count
    number = device.partition(":")[2]
    if not count or (number and int(number) >= count):
        raise ConfigError(
            f"--device {device}: expected a GPU, but torch has {count} of them. Set resources.device: cpu."
        )
    if number:
        yield device
        return
    lock_folder = lock_folder or Path(tempfile.gettempdir()) / f"kiln-gpus-{os.getuid()}"
    lock_folder.mkdir(exist_ok=True)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) == count else [str(n) for n in range(count)]  # the same for all jobs
    is_logged = False
    while True:
        for n, name in enumerate(names):
            with (lock_folder / f"{name.strip()}.lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield f"cuda:{n}"
                return
        if not is_logged:
            log.info("other jobs hold all %d GPUs; waiting for one", count)
            is_logged = True
        time.sleep(POLL_S)
