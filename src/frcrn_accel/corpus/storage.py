"""Paths that are URLs, by fsspec: recordings to be fetched, and outputs to be put there. It is imported when used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from frcrn_accel.errors import AudioError, CorpusError, MissingExtraError, one_line
from frcrn_accel.files import audio_suffixes

__all__ = [
    "check_protocols",
    "fetch",
    "is_remote",
    "list_remote",
    "local_path",
    "put",
    "read_remote",
]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: one is a drive
_MAX_LIST_BYTES = 1 << 30


def is_remote(path: str) -> bool:
    """Whether it is a URL."""
    return _URL.match(path) is not None


def check_protocols(paths: Iterable[str]) -> None:
    """See that there is what reads the URLs among some paths.

    Raises:
        MissingExtraError: fsspec is not installed.
        CorpusError: The package for a kind of storage is not installed, or there is no such kind.
    """
    for protocol in {path.partition("://")[0] for path in paths if is_remote(path)}:
        with _refusals(f"{protocol}://"):
            _fsspec().get_filesystem_class(protocol)


def list_remote(folder: str) -> list[tuple[str, str]]:
    """The audio files of a folder and of all folders below it: their URLs, and their paths from it.

    Raises:
        MissingExtraError: fsspec, or the package for this kind of storage, is not installed.
        CorpusError: The storage refuses.
    """
    suffixes = audio_suffixes()
    with _refusals(folder):
        files, root = _filesystem(folder)
        names = [name for name in files.find(root) if PurePosixPath(urlsplit(name).path).suffix.lower() in suffixes]
        return [(files.unstrip_protocol(name), _below(name, root)) for name in sorted(names)]


def names_in(folder: str) -> set[str]:
    """What there is in a folder and in all folders below it: paths from it; nothing if it is not there.

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
    """The content of a small file.

    Raises:
        MissingExtraError: See `list_remote`.
        CorpusError: It cannot be read, or is larger than 1 GiB.
    """
    with _refusals(url):
        files, name = _filesystem(url)
        with files.open(name, "rb") as file:
            content: bytes = file.read(_MAX_LIST_BYTES + 1)
    if len(content) > _MAX_LIST_BYTES:
        raise CorpusError(f"{url!r} is larger than the limit of {_MAX_LIST_BYTES >> 30} GiB")
    return content


def local_path(source: str, folder: Path) -> Path:
    """Where a recording is read: where it is, or where `fetch` puts it, in a folder."""
    return folder / f"fetched{PurePosixPath(urlsplit(source).path).suffix}" if is_remote(source) else Path(source)


def fetch(source: str, local: Path) -> None:
    """Get a recording from its URL; one that is a local file stays where it is.

    Raises:
        AudioError: It cannot be fetched.
    """
    if not is_remote(source):
        return
    try:
        with _refusals(source):
            files, name = _filesystem(source)
            files.get_file(name, str(local))
    except CorpusError as error:
        raise AudioError(str(error)) from error


def put(local: Path, folder: str, name: str) -> None:
    """Store a file under a URL. Object stores show it when it is complete, not before.

    Args:
        local: The file.
        folder: URL of the output folder. What it is in, such as a bucket, must be there.
        name: Of the output in it.

    Raises:
        MissingExtraError: See `list_remote`.
        CorpusError: The storage refuses.
    """
    with _refusals(folder):  # what it refuses for one output it refuses for all
        files, path = _filesystem(f"{folder}/{name}")
        parents = [folder, *(f"{folder}/{parent}" for parent in reversed(PurePosixPath(name).parents[:-1]))]
        for parent in parents:
            _make_folder(parent)
        files.put_file(str(local), path)


@cache
def _make_folder(url: str) -> None:
    """One folder, not those above it: of a mistyped bucket no bucket is to be made."""
    files, path = _filesystem(url)
    with suppress(FileExistsError):
        files.mkdir(path, create_parents=False)


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
    """What storages raise is of many kinds: that of their clients, of their protocols and of the system."""
    try:
        yield
    except (CorpusError, MissingExtraError):
        raise
    except ImportError as error:  # of the package for this protocol; the text says which
        raise CorpusError(f"{url!r}: {error}") from error
    except Exception as error:
        raise CorpusError(f"{url!r}: {one_line(error, with_type=True)}") from error
