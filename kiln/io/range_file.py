"""A remote file that is read by ranges, for readers that need a few pieces of it."""

import io

from kiln.io import storage


class RangeFile(io.RawIOBase):
    """A seekable file over ranged reads. Every read is one request.

    Reads raise SourceError if the file changed since it was opened, else what `storage.stat` raises.
    """

    def __init__(self, uri: str, source: storage.Stat) -> None:
        super().__init__()
        self.uri, self.source = uri, source
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.source.size}[whence]
        self._position = start + offset
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """Return the next `size` bytes, all of them for -1, fewer at the end."""
        end = self.source.size if size < 0 else min(self.source.size, self._position + size)
        first = self._position
        if first >= end:
            return b""
        data, ranged = storage.store_of(self.uri).read_range(self.uri, first, end - 1, self.source.etag)
        self._position = end
        return data if ranged else data[first:end]
