"""Writing a file so that it is either whole or not there."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frcrn_accel.errors import OutputExistsError

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a new, empty file beside `path`; move it to `path` when the block ends, drop it if an error ends it.

    Args:
        path: The file to make.
        overwrite: Replace a file that is there.

    Raises:
        OutputExistsError: `path` is there, before or after the block, and `overwrite` is false.
        OSError: The folder is missing or not writable.
    """
    _refuse_existing(path, overwrite)
    # Short, so that the longest legal name of `path` does not become an illegal one; created with the user's umask.
    temporary = path.with_name(f".{path.stem[:32]}-{secrets.token_hex(4)}{path.suffix}")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _refuse_existing(path, overwrite)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputExistsError(f"{str(path)!r} is a folder")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{str(path)!r} exists: choose another name or ask to overwrite it")
