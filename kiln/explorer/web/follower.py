"""The thread that follows the database's tag to the next version.

A request is answered from the version that was current when it arrived; the next request gets the new version.
"""

import logging
import threading
from pathlib import Path

from kiln.errors import KilnError
from kiln.explorer.database import TAG, ExplorerDatabase
from kiln.explorer.web.version import Version

POLL_S = 5.0
log = logging.getLogger(__name__)


class Follower:
    """The current version of a database.

    Attributes:
        current: The version that requests are answered from.
        problem: Why the tag cannot be followed at the moment; empty if it can.
    """

    def __init__(self, uri: str, cache: Path, poll_s: float = POLL_S) -> None:
        """Open the version that is tagged now.

        Args:
            uri: Path or address of the database.
            cache: Folder of the matrix.
            poll_s: Seconds between looks at the tag.

        Raises:
            ConfigError: There is no finished database.
            StorageError: The cache cannot be written.
            TransientError: The database does not answer.
        """
        self._uri, self._cache, self._poll_s = uri, cache, poll_s
        self.current = Version(uri, cache)
        self.problem = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="follow-tag")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, without waiting for a version that it is opening."""
        self._stopped.set()

    def update(self) -> bool:
        """Open the next version if the tag has moved; return whether it has. Raises KilnError if it cannot open it."""
        if ExplorerDatabase(self._uri).identity() == self.current.identity:
            return False
        self.current = Version(self._uri, self._cache)
        log.info("%s: the tag %s has moved to version %s", self._uri, TAG, self.current.name)
        return True

    def _follow(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self.update()
            except KilnError as e:
                if str(e) != self.problem:
                    log.warning("%s; version %s stays until the tag can be followed", e, self.current.name)
                self.problem = str(e)
            else:
                self.problem = ""
