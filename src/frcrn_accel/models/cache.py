"""Cache files that are made from a model.

The name of a cached file identifies its source and its content:

    {model}-{16 digits: source file, options, library version}-{16 digits: its own content}.{suffix}
    {model}-imported-{16 digits: its own content}.onnx

The second kind is a model that the user imported under a name, for any version of this library. There is no index
beside the files that could get lost or out of date. A cached file whose content does not match its name is deleted
and made again; an imported one, which only the user can make again, is an error.

Two processes that need the same file at once both make it. Each puts a complete file in place, and it does not matter
whose is used. No lock is taken, so none can be left stale, and file systems without locking work too.
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
from frcrn_accel.cpu import cpu_identity
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import ModelError, one_line
from frcrn_accel.models.file import FileStatus, ModelFile

__all__ = [
    "CACHE_DIR_VARIABLE",
    "MODEL_NAME",
    "cache_folder",
    "cached_file",
    "cached_files",
    "cached_variant",
    "compiled_file",
    "find_cached",
    "find_imported",
    "imported_names",
    "keep_imported",
]

CACHE_DIR_VARIABLE = "FRCRN_ACCEL_CACHE_DIR"
MODEL_SUFFIX = ".onnx"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of an imported model; never a file name
_DIGITS = 16
_CONTENT = "[0-9a-f]" * _DIGITS  # in a glob
_IMPORTED = "imported"
_FILE_NAME = re.compile(rf"(?P<model>.+)-(?P<origin>{_IMPORTED}|[0-9a-f]{{{_DIGITS}}})-[0-9a-f]{{{_DIGITS}}}\.\w+")

log = logging.getLogger("frcrn_accel")


def cache_folder() -> Path:
    """Return the cache folder: `FRCRN_ACCEL_CACHE_DIR` if it is set, else the user's cache folder.

    A user without a home, as in some containers, gets a temporary folder that lasts as long as this process.
    """
    named = os.environ.get(CACHE_DIR_VARIABLE)
    try:
        return Path(named).expanduser() if named else user_cache_path("frcrn-accel", appauthor=False)
    except RuntimeError:
        return _folder_without_home()


def cached_variant(source: ModelFile, key: Mapping[str, str], build: Callable[[Path], None]) -> ModelFile:
    """Return a model file made from a model: the cached one, or a new one. See `cached_file`.

    Raises:
        ModelError: The file that `build` wrote is not a model file of this library.
    """
    return ModelFile.open(cached_file(source, key, _model_builder(build), MODEL_SUFFIX))


def cached_file(source: ModelFile, key: Mapping[str, str], build: Callable[[Path], None], suffix: str) -> Path:
    """Return a file made from a model: the cached one, or a new one.

    If the cache folder is not writable, the file is made in a temporary folder that lasts as long as this process,
    with a warning.

    Args:
        source: The model that the file is made from.
        key: Everything that decides the content, besides the source's content and the version of this library.
        build: Writes the file at the path that it is given, which is an empty file.
        suffix: Suffix of the file name.

    Raises:
        Exception: Whatever `build` raises.
    """
    folder, stem = cache_folder(), _stem(source, key)
    found = _made_by_this_process.get((folder, stem)) or _find(folder, stem, suffix)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _make(folder, stem, build, suffix)
    except OSError as error:
        log.warning("%s cannot be cached in %s (%s): every process makes it again", stem, folder, error.strerror)
        made = _made_by_this_process[folder, stem] = _make(_process_folder(), stem, build, suffix)
        return made


def compiled_file(
    source: ModelFile, key: Mapping[str, str], build: Callable[[Path], None], suffix: str
) -> Path | None:
    """Return what an engine compiled from a model, the cached file or a new one; None if it cannot be cached.

    It only saves time: an engine can always compile the model itself, and says then what is wrong with it. See
    `cached_file` for the arguments; this CPU is a part of the key.
    """
    folder, stem = cache_folder(), _stem(source, {**key, "cpu": cpu_identity()})
    found = _find(folder, stem, suffix)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _make(folder, stem, build, suffix)
    except Exception as error:  # of the engine or the disk
        log.debug("%s cannot be cached in %s (%s)", stem, folder, one_line(error))
        return None


def find_cached(source: ModelFile, key: Mapping[str, str]) -> ModelFile | None:
    """Return the file that `cached_variant` cached for the same arguments; None if there is none."""
    folder, stem = cache_folder(), _stem(source, key)
    found = _made_by_this_process.get((folder, stem)) or _find(folder, stem, MODEL_SUFFIX)
    return None if found is None else ModelFile.open(found)


def keep_imported(name: str, build: Callable[[Path], None]) -> ModelFile:
    """Store a model under a name, replacing the one that had the name before.

    Args:
        name: A `MODEL_NAME`.
        build: Writes the file at the path that it is given, which is an empty file.

    Raises:
        ModelError: The cache folder is not writable, or the file is not a model file of this library.
        Exception: Whatever `build` raises.
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
        raise ModelError(f"model {name!r} cannot be stored in {str(folder)!r}: {error.strerror}") from error
    return ModelFile.open(kept)


def find_imported(name: str) -> ModelFile | None:
    """Return the model that `keep_imported` stored under a name; None if there is none.

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
    """Return the names of the imported models."""
    found = (_FILE_NAME.fullmatch(path.name) for path in cache_folder().glob(f"*-{_IMPORTED}-{_CONTENT}.onnx"))
    return sorted({match["model"] for match in found if match})


def cached_files() -> list[FileStatus]:
    """Check every file in the cache folder against the digest in its name."""
    files = []
    for path in sorted(cache_folder().glob(f"*-{_CONTENT}.*")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            continue
        try:
            again = "import it again" if match["origin"] == _IMPORTED else "it is made again when it is needed"
            files.append(FileStatus(path, path.stat().st_size, None if _is_whole(path) else f"damaged: {again}"))
        except OSError as error:
            files.append(FileStatus(path, 0, f"cannot be read: {error.strerror}"))
    return files


_made_by_this_process: dict[tuple[Path, str], Path] = {}  # by the cache folder that is not writable, and stem


def _imported_paths(name: str) -> list[Path]:
    """Return the files of an imported model, the newest last; several exist only while one replaces another."""
    return sorted(
        cache_folder().glob(f"{name}-{_IMPORTED}-{_CONTENT}.onnx"), key=lambda path: path.stat().st_mtime_ns
    )


def _is_whole(path: Path) -> bool:
    return path.stem.endswith(f"-{sha256_of(path)[:_DIGITS]}")


def _source_sha256(path: Path) -> str:
    """Return the digest of a model file; an unchanged file is read once per process."""
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
    """Return the intact cached file with that name, if any; delete damaged ones."""
    for path in sorted(folder.glob(f"{stem}-{_CONTENT}{suffix}")):
        try:
            if _is_whole(path):
                return path
        except OSError:  # another process deleted it, or it cannot be read
            continue
        log.warning("cached file %s is damaged and is made again", path)
        with suppress(OSError):
            path.unlink()
    return None


def _model_builder(build: Callable[[Path], None]) -> Callable[[Path], None]:
    """Wrap `build` so that a result that is not a model file is rejected."""

    def build_model(path: Path) -> None:
        build(path)
        ModelFile.open(path)

    return build_model


def _make(folder: Path, stem: str, build: Callable[[Path], None], suffix: str) -> Path:
    """Build a file and put it in place when it is complete."""
    temporary = folder / f".{stem}-{secrets.token_hex(4)}{suffix}"
    temporary.touch(exist_ok=False)
    try:
        build(temporary)
        path = folder / f"{stem}-{sha256_of(temporary)[:_DIGITS]}{suffix}"
        if not path.exists():  # else another process was faster, with the same content
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    log.info("made %s", path)
    return path


@cache
@cache
def _folder_without_home() -> Path:
    log.warning("this user has no home folder: files are made again by every process; set %s", CACHE_DIR_VARIABLE)
    return _process_folder()


def _process_folder() -> Path:
    """Return a folder that is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="frcrn-accel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
