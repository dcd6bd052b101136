"""Copy what can be read only once, such as a pipe, to a file that can be read again."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from frcrn_accel.errors import AudioError, FrcrnAccelError
from frcrn_accel.files.reasons import reason_of
from frcrn_accel.notices import collected_notices, notify

__all__ = ["MAX_SPOOLED_BYTES", "local_file", "rename", "spool"]

MAX_SPOOLED_BYTES = 4 << 30


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """Provide a file that can be read repeatedly: `path` itself, or a temporary copy of a pipe.

    Raises:
        AudioError: `path` is a device or a socket, or the pipe holds too much or cannot be read.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = stat.S_IFREG  # opening it reports the reason
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise AudioError(f"{str(path)!r} is a device or a socket, not a file")
    if not stat.S_ISFIFO(mode):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
        copy = Path(folder) / f"pipe{path.suffix}"
        try:
            with path.open("rb") as pipe:
                spool(pipe, copy, repr(str(path)))
        except OSError as error:
            raise AudioError(f"{str(path)!r} cannot be read: {reason_of(error)}") from error
        with _named(copy, path):
            yield copy


@contextmanager
def _named(copy: Path, original: Path) -> Iterator[None]:
    """Let the errors and notices of the block name the original of a copy."""

    def renamed(text: str) -> str:
        return text.replace(repr(str(copy)), repr(str(original)))

    try:
        with collected_notices() as notices:
            yield
    except FrcrnAccelError as error:
        rename(error, renamed)
        raise
    for notice in notices:
        notify(renamed(notice))


def rename(error: FrcrnAccelError, renamed: Callable[[str], str]) -> None:
    """Change the names in the message of an error."""
    error.args = tuple(renamed(part) if isinstance(part, str) else part for part in error.args)


def spool(source: BinaryIO, target: Path, name: str) -> None:
    """Copy a stream to a file.

    Args:
        source: The stream.
        target: The file.
        name: What an error calls the stream.

    Raises:
        AudioError: It is longer than `MAX_SPOOLED_BYTES`.
        OSError: Reading or writing failed.
    """
    size = 0
    with target.open("wb") as file:
        while chunk := source.read(1 << 20):
            size += len(chunk)
            if size > MAX_SPOOLED_BYTES:
                raise AudioError(f"{name} is larger than the limit of {MAX_SPOOLED_BYTES >> 30} GiB")
            file.write(chunk)
