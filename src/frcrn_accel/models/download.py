"""Download a known checkpoint from the model hub: the only code in this library that connects to the internet."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from frcrn_accel._version import __version__
from frcrn_accel.atomic import replacing
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import ModelError, OutputExistsError
from frcrn_accel.models.catalog import KnownModel, known_models
from frcrn_accel.numerals import to_whole

__all__ = ["download_checkpoint", "downloadable"]

_TIMEOUT_S = 30.0  # without receiving a byte
_ATTEMPTS = 5  # per call; each resumes where the previous one was cut off
_CHUNK_BYTES = 1 << 16

DownloadProgress = Callable[[int, int], None]


def download_checkpoint(
    name: str, out: str | Path, *, overwrite: bool = False, progress: DownloadProgress | None = None
) -> Path:
    """Download the checkpoint of a known model.

    If the connection breaks, the partial file stays in `OUT.part` and the next call resumes it. `out` appears once
    the download is complete and its size and digest match the known ones.

    Args:
        name: A known model that has a `checkpoint_url`.
        out: The file to write.
        overwrite: Replace `out` if it exists.
        progress: Called with the number of bytes received and the total.

    Raises:
        ModelError: The model has no download, or the server is unreachable, breaks off, or serves another file.
        OutputExistsError: `out` exists and `overwrite` is false, or `OUT.part` is not a file of this user.
    """
    # Imported here because they are a tenth of the import time of `frcrn_accel`, and downloads are rare.
    import http.client
    import urllib.error

    known = downloadable(name)
    out = Path(out)
    part = out.with_name(f"{out.name}.part")
    _refuse_foreign(part)
    try:
        with replacing(out, overwrite=overwrite) as temporary:
            _fetch(known, part, progress or _no_progress)
            sha256 = sha256_of(part)
            if sha256 != known.checkpoint_sha256:
                part.unlink()
                raise ModelError(
                    f"the file from {known.checkpoint_url} is not the known checkpoint of {name!r}: its sha256 is "
                    f"{sha256}, expected {known.checkpoint_sha256}; it was deleted"
                )
            part.replace(temporary)
    except OutputExistsError:
        raise
    except (urllib.error.URLError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise ModelError(f"{known.checkpoint_url} cannot be downloaded: {reason}{_kept(part)}") from error
    except OSError as error:
        raise ModelError(f"{str(out)!r} cannot be written: {error.strerror}") from error
    finally:
        if part.exists() and part.stat().st_size == 0:
            part.unlink()
    return out


def _refuse_foreign(part: Path) -> None:
    """Refuse to write to a partial file that is a link, or could be changed by another user.

    Raises:
        OutputExistsError: See above.
    """
    try:
        status = part.lstat()
    except OSError:  # there is none, or the folder is the problem, which `replacing` reports
        return
    is_own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not is_own:
        raise OutputExistsError(f"{str(part)!r} is not a file that an earlier download left: remove it")


def downloadable(name: str) -> KnownModel:
    """Return a known model whose checkpoint can be downloaded.

    Raises:
        ModelError: No downloadable model has that name.
    """
    found = {known.name: known for known in known_models().values() if known.checkpoint_url}
    if name not in found:
        raise ModelError(f"no checkpoint of {name!r} can be downloaded; choose one of {', '.join(found)}")
    return found[name]


def _fetch(known: KnownModel, part: Path, progress: DownloadProgress) -> None:
    """Download until `part` has its full size."""
    assert known.checkpoint_bytes is not None  # downloadable models have it
    total = known.checkpoint_bytes
    for _ in range(_ATTEMPTS):
        have = part.stat().st_size if part.exists() else 0
        if have > total:
            part.unlink()
            have = 0
        if have < total:
            with _open_unlinked(part) as file:
                have = _attempt(known, file, have, total, progress)
        if have == total:
            return
    raise ModelError(
        f"the connection to {known.checkpoint_url} broke {_ATTEMPTS} times, at {have / 1e6:.1f} of "
        f"{total / 1e6:.1f} MB{_kept(part)}"
    )


def _attempt(known: KnownModel, file: BinaryIO, have: int, total: int, progress: DownloadProgress) -> int:
    """Request the missing bytes once and return how many have been received in all."""
    import http.client
    import urllib.error
    import urllib.request

    headers = {"User-Agent": f"frcrn-accel/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(str(known.checkpoint_url), headers=headers)  # the catalogue's: https
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            if have and not str(response.headers["Content-Range"]).startswith(f"bytes {have}-"):
                file.truncate(0)  # this server ignores ranges and sends the whole file
                have = 0
            length = response.headers["Content-Length"]
            if length is not None and (size := to_whole(length)) is not None and have + size != total:
                raise ModelError(
                    f"{known.checkpoint_url} is not the known checkpoint of {known.name!r}: it has "
                    f"{have + size:,} bytes, expected {total:,}"
                )
            progress(have, total)
            # Ask for one byte more than expected, to detect a server that sends more.
            while chunk := response.read(min(_CHUNK_BYTES, total - have + 1)):
                if have + len(chunk) > total:
                    file.truncate(0)
                    raise ModelError(
                        f"{known.checkpoint_url} is not the known checkpoint of {known.name!r}: it has "
                        f"more than {total:,} bytes; the download was deleted"
                    )
                file.write(chunk)
                have += len(chunk)
                progress(have, total)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        file.truncate(0)  # the partial file does not belong to the server's file
        have = 0
    except (ConnectionError, TimeoutError, http.client.IncompleteRead):
        file.flush()
    return have


def _open_unlinked(part: Path) -> BinaryIO:
    """Open a partial file to append to it, but not through a symbolic link."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(part, flags, 0o666), "ab")


def _kept(part: Path) -> str:
    """Return how to resume, for the end of an error message; "" if there is no partial file."""
    return (
        f"; run the same command again to resume from {str(part)!r}" if part.exists() and part.stat().st_size else ""
    )


def _no_progress(done_bytes: int, total_bytes: int) -> None:
    """Ignore progress."""
