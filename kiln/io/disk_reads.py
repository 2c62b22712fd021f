"""Bytes that a thread has read from files."""

import threading
from pathlib import Path

ACCOUNT = Path("/proc/thread-self/io")


class _Thread(threading.local):
    """The bytes of the account itself that a thread has read."""

    own_bytes = 0


_THREAD = _Thread()


def thread_read_bytes() -> int:
    """Return the bytes that this thread has read from files since it began; 0 where Linux does not count them.

    Files in the page cache count. Files that are mapped into memory do not, and neither do connections, except those of
    Python over TLS: OpenSSL reads them like files.
    """
    try:
        account = ACCOUNT.read_bytes()
    except OSError:  # another system, or a container that hides it
        return 0
    lines = account.decode().splitlines()
    read = next((int(line.split()[1]) - _THREAD.own_bytes for line in lines if line.startswith("rchar:")), 0)
    _THREAD.own_bytes += len(account)
    return read
