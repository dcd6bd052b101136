"""Files made from a model and kept for the next time.

A cached file's name says what it was made of and what must be in it:

    {model}-{16 digits: source file, options, library version}-{16 digits: its own content}.{suffix}

so there is nothing beside it that could get lost or fall out of step. A file whose content is not what its name says
is dropped and made anew. Two processes that want the same file at once both make it: each puts a whole file in place,
and it does not matter whose is used. No lock is held, so none can be left behind, and file systems without locks do.
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
from frcrn_accel.models.catalog import sha256_of
from frcrn_accel.models.file import ModelFile

__all__ = ["CACHE_DIR_VARIABLE", "cache_folder", "cached_file", "cached_variant", "find_cached"]

CACHE_DIR_VARIABLE = "FRCRN_ACCEL_CACHE_DIR"
MODEL_SUFFIX = ".onnx"
_DIGITS = 16

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

    def build_model(path: Path) -> None:
        build(path)
        ModelFile.open(path)

    return ModelFile.open(cached_file(source, key, build_model, MODEL_SUFFIX))


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


_made_by_this_process: dict[str, Path] = {}


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
    for path in sorted(folder.glob(f"{stem}-*{suffix}")):
        try:
            if path.stem == f"{stem}-{sha256_of(path)[:_DIGITS]}":
                return path
        except OSError:  # another process has dropped it, or it cannot be read
            continue
        log.warning("cached file %s is damaged: it is made anew", path)
        with suppress(OSError):
            path.unlink()
    return None


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
