"""Cache files that are made from a model.

The name of a cached file identifies its source and its content:

    {model}-{16 digits: source file, options, library version}-{16 digits: its own content}.{suffix}
    {model}-imported-{16 digits: its own content}.onnx

The second kind is a model that the user imported under a name, for any version of this library. There is no index
beside the files that could get lost or out of date. A cached file whose content does not match its name is deleted
and made again; an imported one, which only the user can make again, is an error.

Two processes that need the same file at once both make it. Each puts a complete file in place, and it does not matter
whose is used. No lock is taken, so none can be left stale, and file systems without locking work too. Temporary files
of processes that were killed are removed by the next process that makes a file.

Anyone who can write a file can also put its digest into its name. A file is therefore used only if nobody but this
user and root could have written it: see `_distrust`. A folder that others can write to is not used at all, nor is one
that they can replace because they can write to a folder above it: see `_distrust_folder`.
"""

from __future__ import annotations

import atexit
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from frcrn_accel._version import __version__
from frcrn_accel.atomic import remove_leftovers, temporary_path
from frcrn_accel.cpu import cpu_identity
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import ModelError, one_line
from frcrn_accel.models.file import FileStatus, ModelFile
from frcrn_accel.models.recipe import FP32

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
    "loaded_once",
]

CACHE_DIR_VARIABLE = "FRCRN_ACCEL_CACHE_DIR"
MODEL_SUFFIX = ".onnx"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")  # of an imported model; never a file name
_DIGITS = 16
_CONTENT = "[0-9a-f]" * _DIGITS  # in a glob
_IMPORTED = "imported"
_FOLDER_MODE, _FILE_MODE = 0o755, 0o644
_FILE_NAME = re.compile(rf"(?P<model>.+)-(?P<origin>{_IMPORTED}|[0-9a-f]{{{_DIGITS}}})-[0-9a-f]{{{_DIGITS}}}\.\w+")

_is_loaded_once: ContextVar[bool] = ContextVar("_is_loaded_once", default=False)

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
    path = cached_file(
        source, key, _model_builder(build, source), MODEL_SUFFIX, lambda path: _is_made_from(path, source)
    )
    return ModelFile.open(path)


def cached_file(
    source: ModelFile,
    key: Mapping[str, str],
    build: Callable[[Path], None],
    suffix: str,
    is_right: Callable[[Path], bool] = lambda path: True,
) -> Path:
    """Return a file made from a model: the cached one, or a new one.

    If the cache folder is not writable, or others can write to it, the file is made in a temporary folder that lasts
    as long as this process, with a warning.

    Args:
        source: The model that the file is made from.
        key: Everything that decides the content, besides the source's content and the version of this library.
        build: Writes the file at the path that it is given, which is an empty file.
        suffix: Suffix of the file name.
        is_right: Returns whether the metadata of a cached file is right; otherwise the file is made again.

    Raises:
        ModelError: No folder can be written, for example because the disk is full.
        Exception: Whatever `build` raises.
    """
    folder, stem = cache_folder(), _stem(source, key)
    found = _made_by_this_process.get((folder, stem)) or _find(folder, stem, suffix, is_right)
    if found is not None:
        return found
    try:
        return _make_in_cache(folder, stem, build, suffix)
    except OSError as error:
        problem = error.strerror or type(error).__name__
    log.warning("%s cannot be cached in %s (%s): every process makes it again", stem, folder, problem)
    try:
        made = _made_by_this_process[folder, stem] = _make(_process_folder(), stem, build, suffix)
    except OSError as error:
        raise ModelError(f"{stem} cannot be made: no file can be written: {error.strerror}") from error
    return made


def compiled_file(
    source: ModelFile, key: Mapping[str, str], build: Callable[[Path], None], suffix: str
) -> Path | None:
    """Return what an engine compiled from a model, the cached file or a new one; None if it cannot be cached.

    This only saves time: without it, the engine compiles the model itself, and reports errors in it. See
    `cached_file` for the arguments; this CPU is part of the key.
    """
    if _is_loaded_once.get():
        return None
    folder, stem = cache_folder(), _stem(source, {**key, "cpu": cpu_identity()})
    found = _find(folder, stem, suffix)
    if found is not None:
        return found
    try:
        return _make_in_cache(folder, stem, build, suffix)
    except Exception as error:  # of the engine or the disk
        log.debug("%s cannot be cached in %s (%s)", stem, folder, one_line(error))
        return None


@contextmanager
def loaded_once() -> Iterator[None]:
    """Skip `compiled_file` for the models that this thread loads in the block, since they are loaded only once."""
    token = _is_loaded_once.set(True)
    try:
        yield
    finally:
        _is_loaded_once.reset(token)


def find_cached(source: ModelFile, key: Mapping[str, str]) -> ModelFile | None:
    """Return the file that `cached_variant` cached for the same arguments; None if there is none."""
    folder, stem = cache_folder(), _stem(source, key)
    found = _made_by_this_process.get((folder, stem)) or _find(
        folder, stem, MODEL_SUFFIX, lambda path: _is_made_from(path, source)
    )
    return None if found is None else ModelFile.open(found)


def keep_imported(name: str, build: Callable[[Path], None]) -> ModelFile:
    """Store a model under a name, replacing the one that had the name before.

    Args:
        name: A `MODEL_NAME`.
        build: Writes the file at the path that it is given, which is an empty file.

    Raises:
        ModelError: The cache folder is not writable, others can write to it, or the file is not a model file of this
            library.
        Exception: Whatever `build` raises.
    """
    folder = cache_folder()
    try:
        _make_folder(folder)
        _require_trust(name, folder, _distrust_folder(folder))
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
        ModelError: Its file is damaged or cannot be read, or others can write to it.
    """
    try:
        paths = _imported_paths(name)
        if not paths:
            return None
        folder = paths[-1].parent
        _require_trust(name, folder, _distrust_folder(folder))
        _require_trust(name, paths[-1], _distrust(paths[-1]))
        is_whole = _is_whole(paths[-1])
    except OSError as error:
        raise ModelError(f"the imported model {name!r} cannot be read: {error.strerror}") from error
    if not is_whole:
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
    folder = cache_folder()
    for path in sorted(folder.glob(f"*-{_CONTENT}.*")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            continue
        try:
            again = "import it again" if match["origin"] == _IMPORTED else "it is made again when it is needed"
            problem = _distrust_folder(folder) or _distrust(path)
            if problem is None and not _is_whole(path):
                problem = f"damaged: {again}"
            files.append(FileStatus(path, path.stat().st_size, problem))
        except OSError as error:
            files.append(FileStatus(path, 0, f"cannot be read: {error.strerror}"))
    return files


_made_by_this_process: dict[tuple[Path, str], Path] = {}  # by the cache folder that is not usable, and stem


def _imported_paths(name: str) -> list[Path]:
    """Return the files of an imported model, the newest last; several exist only while one replaces another."""
    return sorted(
        cache_folder().glob(f"{name}-{_IMPORTED}-{_CONTENT}.onnx"), key=lambda path: path.stat().st_mtime_ns
    )


def _is_whole(path: Path) -> bool:
    return path.stem.endswith(f"-{sha256_of(path)[:_DIGITS]}")


def _distrust(path: Path) -> str | None:
    """Return who else can write a file or a folder, and the remedy; None if only this user and root can."""
    if not hasattr(os, "geteuid"):  # Windows: user folders are private
        return None
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to another user: set {CACHE_DIR_VARIABLE} to a folder of your own"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"other users can write to it: run 'chmod go-w {path}', or set {CACHE_DIR_VARIABLE} to another folder"
    return None


def _distrust_folder(folder: Path) -> str | None:
    """Return who else can write to a folder, or replace it, and the remedy; None if nobody can.

    Anyone who can write to a folder can rename its entries, unless it is sticky, as `/tmp` is: there, only the owner
    of an entry can. So all folders and links on the way to the folder have to belong to this user or root.
    """
    problem = _distrust(folder)
    if problem is not None or not hasattr(os, "geteuid"):
        return problem
    other = f"or set {CACHE_DIR_VARIABLE} to another folder"
    # In a user namespace, root may have another number: the owner of the root folder can do what root can.
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}
    for step in _way_to(folder):
        status = step.lstat()
        if status.st_uid not in trusted:
            return f"{step} on the way to it belongs to another user: run 'chown' on that, {other}"
        if stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_ISVTX:
            continue
        is_shared = status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_gid)
        if status.st_mode & stat.S_IWOTH or is_shared:
            return f"other users can write to {step} above it: run 'chmod go-w {step}', {other}"
    return None


def _way_to(folder: Path) -> Iterator[Path]:
    """Yield all folders and links on the way to a folder that exists, from the root, and the folder."""
    path = folder.absolute()
    for step in (*reversed(path.parents), path):
        if step.is_symlink():
            yield from _way_to(step.parent / step.readlink())
        yield step


def _is_own_group(group: int) -> bool:
    """Return whether a group is this user's private one, with the user's name, as many systems give each user."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == user.pw_name and group == user.pw_gid and set(found.gr_mem) <= {user.pw_name}


def _require_trust(name: str, path: Path, problem: str | None) -> None:
    if problem is not None:
        raise ModelError(f"model {name!r}: {str(path)!r} is not used: {problem}")


def _is_made_from(path: Path, source: ModelFile) -> bool:
    """Return whether the metadata of a cached model file names this model as its source."""
    try:
        found = ModelFile.open(path).metadata
    except ModelError:
        return False
    original = source.metadata.source_sha256 or _source_sha256(source.path)
    return found.checkpoint_sha256 == source.metadata.checkpoint_sha256 and (
        found.method == FP32 or found.source_sha256 == original
    )


def _source_sha256(path: Path) -> str:
    """Return the digest of a model file; an unchanged file is read once per process."""
    status = path.stat()
    # A new file can have the size and modification time of the one it replaces, but not its inode and change time.
    return _remembered_sha256(
        path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    )


@cache
def _remembered_sha256(path: Path, state: tuple[int, ...]) -> str:
    return sha256_of(path)


def _stem(source: ModelFile, key: Mapping[str, str]) -> str:
    content = {"source": _source_sha256(source.path), "library_version": __version__, **key}
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_DIGITS]
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', source.metadata.name)[:64]}-{identity}"


def _find(folder: Path, stem: str, suffix: str, is_right: Callable[[Path], bool] = lambda path: True) -> Path | None:
    """Return the intact cached file with that name, if any; delete damaged ones."""
    for path in sorted(folder.glob(f"{stem}-{_CONTENT}{suffix}")):
        try:
            problem = _distrust_folder(folder) or _distrust(path)
            if problem is not None:
                log.warning("cached file %s is not used: %s", path, problem)
                continue
            if _is_whole(path) and is_right(path):
                return path
        except OSError:  # another process deleted it, or it cannot be read
            continue
        log.warning("cached file %s is damaged and is made again", path)
        with suppress(OSError):
            path.unlink()
    return None


def _model_builder(build: Callable[[Path], None], source: ModelFile | None = None) -> Callable[[Path], None]:
    """Wrap `build` so that a result that is not a model file, or was not made from the source, is rejected."""

    def build_model(path: Path) -> None:
        build(path)
        made = ModelFile.open(path)
        if source is not None and not _is_made_from(path, source):
            raise ModelError(f"the file made from {source.path} has the metadata of {made.metadata.name!r}")

    return build_model


def _make_in_cache(folder: Path, stem: str, build: Callable[[Path], None], suffix: str) -> Path:
    """Build a file in the cache folder, which is created if need be.

    Raises:
        OSError: It cannot be written, or others can write to it.
        Exception: Whatever `build` raises.
    """
    _make_folder(folder)
    problem = _distrust_folder(folder)
    if problem is not None:
        raise PermissionError(errno.EPERM, problem)
    return _make(folder, stem, build, suffix)


def _make_folder(folder: Path) -> None:
    """Create the cache folder and those above it, writable only for this user, whatever the umask is."""
    for path in (*reversed(folder.parents), folder):
        path.mkdir(exist_ok=True, mode=_FOLDER_MODE)


def _make(folder: Path, stem: str, build: Callable[[Path], None], suffix: str) -> Path:
    """Build a file and put it in place when it is complete."""
    remove_leftovers(folder)
    temporary = temporary_path(folder / f"{stem}{suffix}")
    temporary.touch(mode=_FILE_MODE, exist_ok=False)
    try:
        build(temporary)
        path = folder / f"{stem}-{sha256_of(temporary)[:_DIGITS]}{suffix}"
        if not path.exists() or _distrust(path) is not None:  # otherwise another process has made the same file
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    log.info("made %s", path)
    return path


@cache
def _folder_without_home() -> Path:
    log.warning("this user has no home folder: files are made again by every process; set %s", CACHE_DIR_VARIABLE)
    return _process_folder()


def _process_folder() -> Path:
    """Return a folder that is deleted when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="frcrn-accel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
