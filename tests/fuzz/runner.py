"""Read damaged inputs, each in a process of its own, and judge what happened."""

import multiprocessing
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

from kiln.errors import KilnError

TIME_LIMIT_S = 120.0
MAX_MESSAGE_CHARACTERS = 2000
FORK = multiprocessing.get_context("fork")  # a child has the parent's imports, which take seconds
GOOD = ("unchanged", "refused", "failed row", "known limit")
BAD = ("changed", "traceback", "hang", "died", "untidy")


@dataclass(frozen=True)
class Result:
    """What reading gave: a digest of everything, and whether the ledger has failed units."""

    digest: str
    failed: bool = False


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: Its name.
        count: Damaged inputs of `make fuzz`.
        make: Writes sound input into a folder.
        damage: Damages the input in a copy of the folder.
        read: Reads the input of a folder.
        limit: Returns whether another result is a known limit of the damaged format, from the sound and the damaged
            folder.
    """

    name: str
    count: int
    make: Callable[[Path], None]
    damage: Callable[[Random, Path], None]
    read: Callable[[Path], Result]
    limit: Callable[[Path, Path], bool] = lambda sound, damaged: False


@dataclass(frozen=True)
class Outcome:
    """What happened to one damaged input: one of GOOD or BAD, and the error's text."""

    kind: str
    seed: int
    verdict: str
    text: str = ""


def run_kinds(kinds: Iterable[Kind], folder: Path, jobs: int, seeds: Callable[[Kind], Iterable[int]]) -> list[Outcome]:
    """Read the damaged inputs of some kinds, and return what happened to each.

    Args:
        kinds: The kinds.
        folder: An empty folder.
        jobs: Processes at a time.
        seeds: Returns the seeds of a kind.
    """
    outcomes: list[Outcome] = []
    for kind in kinds:
        sound = folder / kind.name / "sound"
        sound.mkdir(parents=True)
        expected = _sound_result(kind, sound)
        outcomes += _run_seeds(kind, expected, sound, jobs, seeds(kind))
        shutil.rmtree(folder / kind.name)
    return outcomes


def _sound_result(kind: Kind, sound: Path) -> Result:
    """Make the sound input in another process, so that this one starts no threads, and return what reading gives."""

    def make_and_read() -> Result:
        kind.make(sound)
        copy = sound.with_name("first")
        shutil.copytree(sound, copy)
        result = kind.read(copy)
        if result.failed:
            raise AssertionError(f"{kind.name}: the sound input fails")
        return result

    verdict, value = next(_results([(0, make_and_read)], 1, 10 * TIME_LIMIT_S))[1]
    if verdict != "read":
        raise AssertionError(f"{kind.name}: the sound input cannot be read: {verdict} {value}")
    assert isinstance(value, Result)
    return value


def _run_seeds(kind: Kind, expected: Result, sound: Path, jobs: int, seeds: Iterable[int]) -> Iterator[Outcome]:
    def tasks() -> Iterator[tuple[int, Callable[[], Result]]]:
        for seed in seeds:
            copy = sound.with_name(str(seed))
            shutil.copytree(sound, copy)
            kind.damage(Random(f"{kind.name} {seed}"), copy)
            copied = shutil.copytree(copy, copy.with_name(f"read-{seed}"))  # reading may write
            yield seed, lambda copied=copied: kind.read(copied)  # type: ignore[misc]  # bound now

    for seed, (verdict, value) in _results(tasks(), jobs, TIME_LIMIT_S):
        damaged = sound.with_name(str(seed))
        if isinstance(value, Result):
            verdict = _judge(kind, expected, value, sound, damaged)
            value = ""
        yield Outcome(kind.name, seed, verdict, value)
        shutil.rmtree(damaged)
        shutil.rmtree(sound.with_name(f"read-{seed}"))


def _judge(kind: Kind, expected: Result, result: Result, sound: Path, damaged: Path) -> str:
    if result.failed:
        return "failed row"
    if result.digest == expected.digest:
        return "unchanged"
    return "known limit" if kind.limit(sound, damaged) else "changed"


Answer = tuple[str, Any]


def _results(
    tasks: Iterable[tuple[int, Callable[[], Result]]], jobs: int, limit_s: float
) -> Iterator[tuple[int, Answer]]:
    """Yield the answers of tasks as they come, each from a process that is killed after the limit."""
    running: dict[Connection, tuple[int, Any, float]] = {}
    waiting = iter(tasks)
    try:
        while True:
            while len(running) < jobs and (task := next(waiting, None)) is not None:
                receiver, sender = FORK.Pipe(duplex=False)
                process = FORK.Process(target=_answer, args=(task[1], sender))
                process.start()
                sender.close()
                running[receiver] = (task[0], process, time.monotonic() + limit_s)
            if not running:
                return
            first = min(deadline for _, _, deadline in running.values())
            ready = wait(list(running), max(0.0, first - time.monotonic()))
            late = [c for c, (_, _, deadline) in running.items() if deadline <= time.monotonic()]
            for connection in {*ready, *late}:
                assert isinstance(connection, Connection)
                seed, process, _ = running.pop(connection)
                yield seed, _received(connection, process, connection in ready)
    finally:
        for _, process, _ in running.values():
            process.kill()
            process.join()


def _received(connection: Connection, process: Any, ready: bool) -> Answer:
    try:
        if not ready:
            process.kill()
            return "hang", f"no answer in {TIME_LIMIT_S:g} s"
        answer: Answer = connection.recv()
        return answer
    except EOFError:
        process.join()
        return "died", f"exit code {process.exitcode}"
    finally:
        connection.close()
        process.join(TIME_LIMIT_S)
        process.kill()
        process.join()


def _answer(task: Callable[[], Result], sender: Connection) -> None:
    """Run a task in a child and send what it did; leave without the parent's exit handlers."""
    with open(os.devnull, "w") as null:  # noqa: PTH123 (a file descriptor)
        os.dup2(null.fileno(), 1)
        os.dup2(null.fileno(), 2)
    try:
        sender.send(("read", task()))
    except KilnError as e:
        text = str(e)
        tidy = "\n" not in text and len(text) <= MAX_MESSAGE_CHARACTERS
        sender.send(("refused" if tidy else "untidy", text))
    except BaseException:
        sender.send(("traceback", traceback.format_exc()))
    os._exit(0)
