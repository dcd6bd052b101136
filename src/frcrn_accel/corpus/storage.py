"""Fetch recordings from URLs and store outputs there, with fsspec, which is imported on first use."""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from frcrn_accel.errors import AudioError, CorpusError, MissingExtraError, one_line
from frcrn_accel.files import audio_suffixes

__all__ = [
    "check_protocols",
    "digest_of_remote",
    "fetch",
    "is_remote",
    "key_of",
    "list_remote",
    "local_path",
    "names_in",
    "names_refused",
    "put",
    "read_remote",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # at least two letters; one is a drive on Windows
# A name is too long, has characters that are not allowed, or needs a folder where a file is, or the reverse.
_NAME_ERRORS = (
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
    *(errno.EINVAL, errno.EILSEQ, errno.ELOOP),
)
_CHUNK_BYTES = 1 << 20
_WEB = ("http", "https")
_MAX_LIST_BYTES = 1 << 30


def is_remote(path: str) -> bool:
    """Return whether a path is a URL."""
    return _URL.match(path) is not None


def key_of(url: str) -> str:
    """Return what a URL names, without its protocol.

    Only addresses of the web have queries and fragments. In names of storages `#`, `?` and `%` are characters like
    others.
    """
    protocol, _, key = url.partition("://")
    if protocol.lower() in _WEB:
        with suppress(ValueError):  # e.g. an unclosed bracket: it fails when it is fetched, and alone
            parts = urlsplit(url)
            return f"{parts.netloc}{parts.path}"
    return key


def check_protocols(paths: Iterable[str]) -> None:
    """Check that the packages for the URLs among some paths are installed.

    Raises:
        MissingExtraError: fsspec is not installed.
        CorpusError: The package for a protocol is not installed, or the protocol is unknown.
    """
    for protocol in {path.partition("://")[0] for path in paths if is_remote(path)}:
        with _refusals(f"{protocol}://"):
            _fsspec().get_filesystem_class(protocol)


def list_remote(folder: str) -> list[tuple[str, str]]:
    """List the audio files in a folder and its subfolders: URL, and path relative to the folder.

    Raises:
        MissingExtraError: fsspec is not installed.
        CorpusError: The storage refuses, or the package for its protocol is not installed.
    """
    suffixes = audio_suffixes()
    with _refusals(folder):
        files, root = _filesystem(folder)
        names = [
            name
            for name in files.find(root)
            if PurePosixPath(key_of(files.unstrip_protocol(name))).suffix.lower() in suffixes
        ]
        return [(files.unstrip_protocol(name), _below(name, root)) for name in sorted(names)]


def names_in(folder: str) -> set[str]:
    """Return the paths, relative to a folder, of all files in it and its subfolders; empty if it does not exist.

    Raises:
        MissingExtraError: See `list_remote`.
        CorpusError: The storage refuses.
    """
    with _refusals(folder):
        files, root = _filesystem(folder)
        try:
            return {_below(name, root) for name in files.find(root)}
        except FileNotFoundError:
            return set()


def read_remote(url: str) -> bytes:
    """Read a small file.

    Raises:
        MissingExtraError: See `list_remote`.
        CorpusError: The file cannot be read, or is larger than 1 GiB.
    """
    with _refusals(url):
        files, name = _filesystem(url)
        with files.open(name, "rb") as file:
            content: bytes = file.read(_MAX_LIST_BYTES + 1)
    if len(content) > _MAX_LIST_BYTES:
        raise CorpusError(f"{url!r} is larger than the limit of {_MAX_LIST_BYTES >> 30} GiB")
    return content


def local_path(source: str, folder: Path) -> Path:
    """Return the path of a recording: its own, or for a URL the one in `folder` where `fetch` puts it."""
    return folder / f"fetched{PurePosixPath(key_of(source)).suffix}" if is_remote(source) else Path(source)


def fetch(source: str, local: Path, note_progress: Callable[[], None] = lambda: None) -> None:
    """Download a recording, if it is a URL.

    Args:
        source: Path or URL of the recording.
        local: Where it is put, see `local_path`.
        note_progress: Called as data arrives, if the storage reports it.

    Raises:
        AudioError: It cannot be downloaded.
    """
    if not is_remote(source):
        return
    try:
        with _refusals(source):
            files, name = _filesystem(source)
            files.get_file(name, str(local), callback=_callback(note_progress))
    except CorpusError as error:
        raise AudioError(str(error)) from error


def put(local: Path, folder: str, name: str, note_progress: Callable[[], None] = lambda: None) -> None:
    """Store a file under a URL. In object stores it appears when it is complete.

    Args:
        local: Path of the file.
        folder: URL of the output folder. The bucket, or the folder that contains it, must exist.
        name: Path of the output, relative to the folder.
        note_progress: Called as data is sent, if the storage reports it.

    Raises:
        MissingExtraError: See `list_remote`.
        AudioError: The storage cannot hold a file of this name.
        CorpusError: The storage refuses.
    """
    with _refusals(folder), names_refused(name):  # a storage that refuses one output refuses all
        files, path = _filesystem(f"{folder}/{name}")
        parents = [folder, *(f"{folder}/{parent}" for parent in reversed(PurePosixPath(name).parents[:-1]))]
        for parent in parents:
            _make_folder(parent)
        files.put_file(str(local), path, callback=_callback(note_progress))


@cache
def _make_folder(url: str) -> None:
    """Make a folder but not its parents, so that a mistyped bucket is not created."""
    files, path = _filesystem(url)
    with suppress(FileExistsError):
        files.mkdir(path, create_parents=False)


@contextmanager
def names_refused(name: str) -> Iterator[None]:
    """Turn the error of a file system that cannot hold a file of this name into `AudioError`: others can be made.

    Raises:
        AudioError: See above.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NAME_ERRORS:
            raise
        raise AudioError(f"{name!r} cannot be the name of an output: {error.strerror}") from error


def digest_of_remote(folder: str, name: str) -> str | None:
    """Return the SHA-256 of a file in a folder; None if it does not exist.

    Raises:
        MissingExtraError: See `list_remote`.
        CorpusError: The storage refuses.
    """
    with _refusals(folder):
        files, path = _filesystem(f"{folder}/{name}")
        try:
            with files.open(path, "rb") as file:
                digest = hashlib.sha256()
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
                return digest.hexdigest()
        except FileNotFoundError:
            return None


def _callback(note_progress: Callable[[], None]) -> Any:
    from fsspec.callbacks import Callback

    return Callback(hooks={"progress": lambda size, value: note_progress()})


def _below(name: str, root: str) -> str:
    return name.removeprefix(root.rstrip("/") + "/")


def _filesystem(url: str) -> tuple[Any, str]:
    found: tuple[Any, str] = _fsspec().core.url_to_fs(url)
    return found


def _fsspec() -> Any:
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtraError("A path that is a URL", "ray", error) from error
    return fsspec


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    """Turn whatever a storage raises into `CorpusError`: clients and protocols have exceptions of their own."""
    try:
        yield
    except (AudioError, CorpusError, MissingExtraError):
        raise
    except ImportError as error:  # names the package for this protocol
        raise CorpusError(f"{url!r}: {error}") from error
    except Exception as error:
        raise CorpusError(f"{url!r}: {one_line(error, with_type=True)}") from error
