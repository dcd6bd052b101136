"""Insert bytes into the output of an encoder, and keep the errors of the system."""

from __future__ import annotations

import io
from typing import BinaryIO

__all__ = ["Inserting"]


class Inserting:
    """A file for an encoder, with inserted bytes that the encoder does not see.

    libsndfile replaces every error by its own, so the error of the system is kept in `error`.

    Args:
        file: The real file, open for reading and writing.
        at: Position of the insertion.
        inserted: The bytes.
    """

    def __init__(self, file: BinaryIO, at: int = 0, inserted: bytes = b"") -> None:
        self.error: OSError | None = None
        self._file = file
        self._at, self._shift = at, len(inserted)
        self._position = 0
        self._end = 0
        self._inserted = inserted

    def write(self, data: bytes) -> int:
        """Write at the position of the encoder."""
        before = max(0, self._at - self._position)
        parts = [data[:before], data[before:]] if 0 < before < len(data) else [data]
        try:
            for part in parts:
                self._write(part)
        except OSError as error:
            self.error = error
            return 0
        return len(data)

    def _write(self, data: bytes) -> None:
        if self._position >= self._at and self._inserted:
            self._file.seek(self._at)
            self._file.write(self._inserted)
            self._inserted = b""
        self._file.seek(self._position + (self._shift if self._position >= self._at else 0))
        self._file.write(data)
        self._position += len(data)
        self._end = max(self._end, self._position)

    def read(self, size: int = -1) -> bytes:
        """Read at the position of the encoder."""
        self._file.seek(self._position + (self._shift if self._position >= self._at else 0))
        data = self._file.read(size)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the encoder."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._end}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        """Return the position of the encoder."""
        return self._position
