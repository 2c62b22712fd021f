"""Failures that will recur, and those that a retry may repair.

A retry does not change a failed unit as long as its source is the same: for anything else, jobs end with an error. So
its source is looked at again.
"""

import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Literal

from kiln.errors import KilnError, TransientError
from kiln.io import storage
from kiln.report.status.folders import Failure

Outlook = Literal["retry", "recurs", "unknown", "unchecked"]
MAX_CHECKED = 200  # failures whose sources are looked at
MAX_REQUESTS = 16  # at a time
MISSING = re.compile(r"does not exist|was removed|removed since")
DENIED = re.compile(r"access denied|the server answers 40[13]")
NOT_A_SOURCE = re.compile(r"not finite")  # of the model, which gives the same again
FILE = re.compile(r"(?:^|: )(\S*/\S*?)(?:, |: )")  # that a reason names first, as `red is missing: s3://b/B04.tif: ...`
SEVERAL = re.compile(r"[0-9a-f]{16}")  # digest of the ETags of several files, which no store has


def outlooks(failures: Sequence[tuple[Failure, int]], keep_s: float = 0.0) -> dict[Failure, Outlook]:
    """Return whether a retry may repair each failure.

    Args:
        failures: Failures, and when their shards' ledgers were written, in nanoseconds since the epoch; 0 if that is
            unknown, as on a store.
        keep_s: Seconds for which what was found before is kept, since a request may be billed.

    Returns:
        `retry` if the shard's ledger is damaged or the unit's source has changed, `recurs` if the source is the same,
        `unknown` if that cannot be seen, and `unchecked` for sources after the first MAX_CHECKED.
    """
    looks = {failure: _outlook_without_look(failure) for failure, _ in failures}
    to_look_at = [entry for entry in failures if looks[entry[0]] == "unknown"]
    looks |= dict.fromkeys([failure for failure, _ in to_look_at[MAX_CHECKED:]], "unchecked")
    by_store: dict[str, list[tuple[Failure, int]]] = {}
    for failure, written in to_look_at[:MAX_CHECKED]:
        by_store.setdefault(_store_of(_file_of(failure)), []).append((failure, written))
    with ThreadPoolExecutor(MAX_REQUESTS) as pool:
        for entries in by_store.values():
            first, *others = entries
            try:  # a store that cannot be reached is asked once
                looks[first[0]] = _look(*first, keep_s)
            except TransientError:
                continue
            found = pool.map(lambda entry: _try_look(entry[0], entry[1], keep_s), others)
            looks |= {failure: look for (failure, _), look in zip(others, found, strict=True)}
    return looks


def _outlook_without_look(failure: Failure) -> Outlook:
    """Return the outlook of a failure that does not depend on a source, `unknown` for another one."""
    if not failure.unit:
        return "retry"
    return "recurs" if NOT_A_SOURCE.search(failure.reason) else "unknown"


def _look(failure: Failure, written: int, keep_s: float) -> Outlook:
    """Return the outlook of a failure; for `keep_s` seconds, the one that was found before. Raises TransientError."""
    return _kept_outlook(failure, written, int(time.monotonic() / keep_s)) if keep_s else _outlook(failure, written)


def _try_look(failure: Failure, written: int, keep_s: float) -> Outlook:
    try:
        return _look(failure, written, keep_s)
    except TransientError:
        return "unknown"


@lru_cache(maxsize=4 * MAX_CHECKED)
def _kept_outlook(failure: Failure, written: int, period: int) -> Outlook:
    """Return the outlook of a failure, looked at once in a period."""
    return _outlook(failure, written)


def _outlook(failure: Failure, written: int) -> Outlook:
    """Return the outlook of a failure by its source. Raises TransientError if the store cannot be reached."""
    uri = _file_of(failure)
    try:
        stat = storage.stat(uri)
    except TransientError:
        raise
    except KilnError:
        return "recurs" if DENIED.search(failure.reason) else "unknown"
    if stat is None:
        return "recurs" if MISSING.search(failure.reason) else "unknown"
    if MISSING.search(failure.reason) or DENIED.search(failure.reason):
        return "retry"
    if uri == failure.source and stat.etag and failure.etag and not SEVERAL.fullmatch(failure.etag):
        return "recurs" if stat.etag == failure.etag else "retry"
    if stat.modified and written:
        return "retry" if stat.modified > written else "recurs"
    return "unknown"


def _store_of(uri: str) -> str:
    """Return the bucket or server of an address; empty for a path."""
    return "/".join(uri.split("/")[:3]) if "://" in uri else ""


def _file_of(failure: Failure) -> str:
    """Return the file that a failure is about: errors name it first, also where the unit has several."""
    named = FILE.search(failure.reason)
    return named[1] if named else failure.source
