"""Read part of a file as a file of its own."""

from __future__ import annotations

import io
import os
from typing import BinaryIO

__all__ = ["FilePart"]


class FilePart(io.RawIOBase):
    """Part of a file, to be read as a file of its own.

    Args:
        file: The file. It is not closed.
        start: Position of the first byte.
        end: Position after the last byte.
    """

    def __init__(self, file: BinaryIO, start: int, end: int) -> None:
        self._file, self._start, self._size = file, start, end - start
        self._position = 0

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        left = max(0, self._size - self._position)
        data = self._bytes_at(self._position, left if size < 0 else min(size, left))
        self._position += len(data)
        return data

    def _bytes_at(self, position: int, size: int) -> bytes:
        self._file.seek(self._start + position)
        return self._file.read(size)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position
