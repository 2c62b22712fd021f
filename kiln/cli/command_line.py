"""How every script begins and ends: logging, clear errors, a clean end on SIGTERM or when Snakemake dies."""

import argparse
import logging
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from kiln.errors import ConfigError, KilnError

DRIVER = "KILN_DRIVER_PID"  # set by the Snakefile: the process whose end ends this one
POLL = 1.0  # seconds between looks at the driver


def parser(doc: str | None, prog: str) -> argparse.ArgumentParser:
    """A parser whose help is the module's docstring and tells the defaults that say something."""
    made = argparse.ArgumentParser(prog=f"python -m {prog}", description=doc, formatter_class=Formatter)
    made._negative_number_matcher = re.compile(r"^-\.?\d")  # `--at -98,47` is a place, not an option
    return made


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines, and adds a default where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(100, shutil.get_terminal_size().columns))

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.help or ""
        if action.default in (None, False, "", argparse.SUPPRESS) or action.default in ([], {}, "{}"):
            return told
        return f"{told} (default: %(default)s)"


class Terminated(BaseException):
    """SIGTERM: unwinds everything, so that nothing partial is left."""


def run(work: Callable[[], None]) -> None:
    """Do the work of a script's `main`; exits 0, 2 (wrong settings), 1 (any named error) or 143 (SIGTERM)."""
    logging.basicConfig(level=os.environ.get("KILN_LOG", "INFO"), format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for noisy in ("botocore", "rasterio", "urllib3", "matplotlib", "fontTools", "numexpr"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    _end_with_driver()
    try:
        work()
    except ConfigError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    except KilnError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; nothing partial is left", file=sys.stderr)
        raise SystemExit(130) from None
    except Terminated:
        print("terminated; nothing partial is left", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)  # a read that hangs in a thread must not keep the process


def _terminate(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _end_with_driver() -> None:
    """End when the Snakemake process that started this script is gone, even by SIGKILL."""
    driver = os.environ.get(DRIVER, "")
    if not driver.isdigit() or not _started(driver):
        return
    born = _started(driver)

    def watch() -> None:
        while _started(driver) == born:
            time.sleep(POLL)
        print("the workflow that started this script is gone; ending", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="driver-watch").start()


def _started(pid: str) -> str:
    """When a process started (field 22 of /proc/PID/stat), so that a reused number is not taken for it; '' if gone."""
    try:
        with open(f"/proc/{pid}/stat") as f:  # noqa: PTH123 (called every second)
            fields = f.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
