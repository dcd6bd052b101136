"""Files made from a model and kept for the next time.

A cached file's name says what it was made of and what must be in it:

    {model}-{16 digits: source file, options, library version}-{16 digits: its own content}.{suffix}
    {model}-imported-{16 digits: its own content}.onnx

The second kind is a model that the user brought in under a name of its own, for any version of this library. There is
nothing beside a file that could get lost or fall out of step. One whose content is not what its name says is dropped
and made anew; an imported one, which only the user can make anew, is an error.

Two processes that want the same file at once both make it: each puts a whole file in place, and it does not matter
whose is used. No lock is held, so none can be left behind, and file systems without locks do.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from frcrn_accel._version import __version__
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import ModelError
from frcrn_accel.models.file import FileStatus, ModelFile

__all__ = [
    "CACHE_DIR_VARIABLE",
    "MODEL_NAME",
    "cache_folder",
    "cached_file",
    "cached_files",
    "cached_variant",
    "find_cached",
    "find_imported",
    "imported_names",
    "keep_imported",
]

CACHE_DIR_VARIABLE = "FRCRN_ACCEL_CACHE_DIR"
MODEL_SUFFIX = ".onnx"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of an imported model; without a dot it is no file's name
_DIGITS = 16
_CONTENT = "[0-9a-f]" * _DIGITS  # in a glob
_IMPORTED = "imported"
_FILE_NAME = re.compile(rf"(?P<model>.+)-(?P<origin>{_IMPORTED}|[0-9a-f]{{{_DIGITS}}})-[0-9a-f]{{{_DIGITS}}}\.\w+")

log = logging.getLogger("frcrn_accel")


def cache_folder() -> Path:
    """Where cached files are: the folder that `FRCRN_ACCEL_CACHE_DIR` names, or the user's cache folder."""
    named = os.environ.get(CACHE_DIR_VARIABLE)
    return Path(named).expanduser() if named else user_cache_path("frcrn-accel", appauthor=False)


def cached_variant(source: ModelFile, key: Mapping[str, str], build: Callable[[Path], None]) -> ModelFile:
    """A model file made from a model: the one that was made before, or a new one. See `cached_file`.

    Raises:
        ModelError: What `build` made is no model file of this library.
    """
    return ModelFile.open(cached_file(source, key, _model_builder(build), MODEL_SUFFIX))


def cached_file(source: ModelFile, key: Mapping[str, str], build: Callable[[Path], None], suffix: str) -> Path:
    """A file made from a model: the one that was made before, or a new one.

    If the cache folder cannot be written, the file is made in a temporary folder that lasts as long as this process,
    with a warning.

    Args:
        source: The model that it is made from.
        key: All that decides what is in it, beside the source's content and the version of this library.
        build: Makes it at the path it gets, where there is an empty file.
        suffix: What its name ends in.

    Raises:
        Exception: What `build` raises.
    """
    folder, stem = cache_folder(), _stem(source, key)
    found = _made_by_this_process.get(stem) or _find(folder, stem, suffix)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _make(folder, stem, build, suffix)
    except OSError as error:
        log.warning("%s cannot be kept in %s (%s): it is made again by each process", stem, folder, error.strerror)
        made = _made_by_this_process[stem] = _make(_process_folder(), stem, build, suffix)
        return made


def find_cached(source: ModelFile, key: Mapping[str, str]) -> ModelFile | None:
    """The file that `cached_variant` made before for the same arguments; None if there is none."""
    stem = _stem(source, key)
    found = _made_by_this_process.get(stem) or _find(cache_folder(), stem, MODEL_SUFFIX)
    return None if found is None else ModelFile.open(found)


def keep_imported(name: str, build: Callable[[Path], None]) -> ModelFile:
    """Keep a model under a name, in the place of the one that had the name before.

    Args:
        name: A `MODEL_NAME`.
        build: Makes it at the path it gets, where there is an empty file.

    Raises:
        ModelError: The cache folder cannot be written, or what `build` made is no model file of this library.
        Exception: What `build` raises.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in _imported_paths(name):
            if not _is_whole(path):
                path.unlink()
        kept = _make(folder, f"{name}-{_IMPORTED}", _model_builder(build), MODEL_SUFFIX)
        for path in _imported_paths(name):
            if path != kept:
                path.unlink()
    except OSError as error:
        raise ModelError(f"model {name!r} cannot be kept in {str(folder)!r}: {error.strerror}") from error
    return ModelFile.open(kept)


def find_imported(name: str) -> ModelFile | None:
    """The model that `keep_imported` kept under a name; None if there is none.

    Raises:
        ModelError: Its file is damaged.
    """
    paths = _imported_paths(name)
    if not paths:
        return None
    if not _is_whole(paths[-1]):
        raise ModelError(
            f"the imported model {str(paths[-1])!r} is damaged: run 'frcrn-accel models import CHECKPOINT --name "
            f"{name}' again"
        )
    return ModelFile.open(paths[-1])


def imported_names() -> list[str]:
    """Names of the imported models."""
    found = (_FILE_NAME.fullmatch(path.name) for path in cache_folder().glob(f"*-{_IMPORTED}-{_CONTENT}.onnx"))
    return sorted({match["model"] for match in found if match})


def cached_files() -> list[FileStatus]:
    """The files in the cache folder that have a name as above, each against the digest in its name."""
    files = []
    for path in sorted(cache_folder().glob(f"*-{_CONTENT}.*")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            continue
        try:
            again = "import it again" if match["origin"] == _IMPORTED else "it is made anew when it is needed"
            files.append(FileStatus(path, path.stat().st_size, None if _is_whole(path) else f"damaged: {again}"))
        except OSError as error:
            files.append(FileStatus(path, 0, f"cannot be read: {error.strerror}"))
    return files


_made_by_this_process: dict[str, Path] = {}


def _imported_paths(name: str) -> list[Path]:
    """Files of an imported model, the newest last: there are several only while one takes the place of another."""
    return sorted(
        cache_folder().glob(f"{name}-{_IMPORTED}-{_CONTENT}.onnx"), key=lambda path: path.stat().st_mtime_ns
    )


def _is_whole(path: Path) -> bool:
    return path.stem.endswith(f"-{sha256_of(path)[:_DIGITS]}")


def _source_sha256(path: Path) -> str:
    """Digest of a model file, read once in a process for as long as it stays as it is: loading asks several times."""
    status = path.stat()
    return _remembered_sha256(path, status.st_mtime_ns, status.st_size)


@cache
def _remembered_sha256(path: Path, mtime_ns: int, size: int) -> str:
    return sha256_of(path)


def _stem(source: ModelFile, key: Mapping[str, str]) -> str:
    content = {"source": _source_sha256(source.path), "library_version": __version__, **key}
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', source.metadata.name)[:64]}-{identity}"


def _find(folder: Path, stem: str, suffix: str) -> Path | None:
    """The whole cached file of that name, if there is one; damaged ones are dropped."""
    for path in sorted(folder.glob(f"{stem}-{_CONTENT}{suffix}")):
        try:
            if _is_whole(path):
                return path
        except OSError:  # another process has dropped it, or it cannot be read
            continue
        log.warning("cached file %s is damaged: it is made anew", path)
        with suppress(OSError):
            path.unlink()
    return None


def _model_builder(build: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, but what is no model file is not kept."""

    def build_model(path: Path) -> None:
        build(path)
        ModelFile.open(path)

    return build_model


def _make(folder: Path, stem: str, build: Callable[[Path], None], suffix: str) -> Path:
    """Build a file and put it in place when it is whole."""
    temporary = folder / f".{stem}-{secrets.token_hex(4)}{suffix}"
    temporary.touch(exist_ok=False)
    try:
        build(temporary)
        path = folder / f"{stem}-{sha256_of(temporary)[:_DIGITS]}{suffix}"
        if not path.exists():  # else another process was faster, and its file has the same content
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    log.info("made %s", path)
    return path


@cache
def _process_folder() -> Path:
    """A folder that goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="frcrn-accel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
