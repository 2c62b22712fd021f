"""What every command shares: its parser, logging, errors of one line, and a clean end on SIGTERM."""

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

from kiln.cli import LEFT_OUT
from kiln.errors import ConfigError, KilnError

DRIVER = "KILN_DRIVER_PID"  # set by the Snakefile: when that process ends, this one ends
POLL_S = 1.0  # between two checks of the driver
log = logging.getLogger(__name__)
QUIET_LOGGERS = ("botocore", "rasterio", "urllib3", "matplotlib", "fontTools", "numexpr")


def parser(doc: str | None, prog: str) -> argparse.ArgumentParser:
    """Return an argument parser.

    Args:
        doc: The module's docstring, shown above the options as it is.
        prog: The command as a person types it: `kiln search`, or `python -m scripts.merge`.
    """
    parser = argparse.ArgumentParser(prog=prog, description=doc, formatter_class=Formatter)
    parser._negative_number_matcher = re.compile(r"^-\.?\d")  # `--at -98,47` is a coordinate, not an option
    return parser


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A help formatter that keeps the docstring's lines and appends an option's default."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=min(100, shutil.get_terminal_size().columns))

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.default in (None, False, "", argparse.SUPPRESS) or action.default in ([], {}, "{}"):
            return text
        return f"{text} (default: %(default)s)"


class Terminated(BaseException):
    """SIGTERM as an exception: it unwinds the stack, so that no partial file stays."""


def run(work: Callable[[], None]) -> None:
    """Run the body of a command, and turn its errors into one line and an exit code.

    Raises:
        SystemExit: 2 after a ConfigError, 1 after another KilnError, 130 after Ctrl-C. After SIGTERM the process ends
            with 143. Other errors are bugs and pass through with their traceback.
    """
    logging.basicConfig(level=os.environ.get("KILN_LOG", "INFO"), format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if LEFT_OUT:
        log.info("left out of the environment: %s", ", ".join(f"{name}={value}" for name, value in LEFT_OUT.items()))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_terminated)
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
        os._exit(128 + signal.SIGTERM)  # a read that hangs in a thread must not keep the process alive


def confirm(question: str, yes: bool) -> None:
    """Ask a person to go on, unless `yes`.

    Raises:
        ConfigError: The answer is not yes, or standard input is no terminal.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError(f"{question} Expected an answer, but input is no terminal. Give --yes (make: YES=1).")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing was done")


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _end_with_driver() -> None:
    """Start a thread that ends this process when the Snakemake process that started it is gone, even by SIGKILL."""
    driver = os.environ.get(DRIVER, "")
    start = _start_time(driver) if driver.isdigit() else ""
    if not start:
        return

    def watch() -> None:
        while _start_time(driver) == start:
            time.sleep(POLL_S)
        print("the workflow that started this script is gone; ending", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="driver-watch").start()


def _start_time(pid: str) -> str:
    """Return when a process started, field 22 of /proc/PID/stat; '' if it is gone.

    A later process with the same number has another time.
    """
    try:
        with open(f"/proc/{pid}/stat") as f:  # noqa: PTH123 (called every second)
            fields = f.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
