"""Write files atomically: a file is either complete or absent."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frcrn_accel.errors import OutputExistsError

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Create an empty temporary file next to `path`, and move it to `path` when the block ends without an error.

    Args:
        path: The file to write.
        overwrite: Replace an existing file.

    Raises:
        OutputExistsError: `path` is a folder; or it exists, before or after the block, and `overwrite` is false.
        OSError: The folder does not exist or is not writable.
    """
    _refuse_existing(path, overwrite)
    # The stem is cut so that the longest legal name stays legal. The file gets the mode of the user's umask.
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
        raise OutputExistsError(f"{str(path)!r} exists: choose another name, or overwrite it")
