"""Write files atomically: a file is either complete or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from frcrn_accel.errors import OutputExistsError

__all__ = [
    "copy_to_device",
    "is_device",
    "link_in_path",
    "remove_leftovers",
    "replacing",
    "temporary_folder",
    "temporary_path",
]

# The name of a temporary file identifies the process that writes it: the machine with its boot and process namespace,
# the process number, and when it started. This distinguishes the file of a killed process from one being written.
_TEMPORARY = re.compile(
    r"\..*-frcrn-(?P<machine>[0-9a-f]{8})-(?P<process>\d+)-(?P<start>\d+)-[0-9a-f]{8}(\.[^.]*)?", re.S
)
_DESCRIPTOR = re.compile(r"/dev/(?P<name>stdout|stderr)|/(dev|proc/self)/fd/(?P<number>\d+)")
_STANDARD = {"stdout": 1, "stderr": 2}
_UNKNOWN = "0" * 8
_MAX_PART_BYTES = 64  # of the stem and of the suffix, so that the longest legal name stays legal


@contextmanager
def replacing(path: Path, *, overwrite: bool, like: Path | None = None) -> Iterator[Path]:
    """Create an empty temporary file next to `path`, and move it to `path` when the block ends without an error.

    A symbolic link is followed: the link stays, and the file that it points to is replaced. For a device or a FIFO,
    the result is copied to it. The new file gets the permissions of the user's umask, except for those that `like` or
    the replaced file lacks.

    Args:
        path: The file to write.
        overwrite: Replace an existing file.
        like: The file whose permissions the new one must not exceed, such as the source of the audio.

    Raises:
        OutputExistsError: `path` is a folder; or it exists, before or after the block, and `overwrite` is false.
        OSError: The folder does not exist or is not writable.
    """
    _refuse_existing(path, overwrite)
    if is_device(path):
        with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
            temporary = Path(folder) / f"device{_cut(path.suffix)}"
            temporary.touch()
            yield temporary
            copy_to_device(temporary, path)
        return
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    temporary = temporary_path(target)
    temporary.touch(mode=_mode(target, like) | stat.S_IRUSR | stat.S_IWUSR, exist_ok=False)
    try:
        yield temporary
        _refuse_existing(path, overwrite)
        temporary.chmod(stat.S_IMODE(temporary.stat().st_mode) & _mode(target, like))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    """Create a folder of this user alone. It is removed when the block ends, or by `remove_leftovers` after a kill.

    Args:
        parent: Where to create it.
        name: Start of its name.

    Raises:
        OSError: It cannot be created.
    """
    folder = temporary_path(parent / name)
    folder.mkdir(mode=stat.S_IRWXU)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def link_in_path(folder: Path, name: str | Path) -> Path | None:
    """Return the first symbolic link between a folder and a file below it; None if there is none.

    A folder that is named may be a link itself. One below it may lead out of it, to files that nobody named.

    Args:
        folder: The folder.
        name: Path of the file, relative to the folder. The file itself is not looked at.
    """
    for parent in reversed(Path(name).parents[:-1]):
        if (folder / parent).is_symlink():
            return folder / parent
    return None


def is_device(path: Path) -> bool:
    """Return whether a path must be written to rather than replaced: a device, a FIFO or a socket."""
    if _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def copy_to_device(source: Path, device: Path) -> None:
    """Copy a file to a device or a FIFO.

    Raises:
        OSError: The device refuses, or the reader of the FIFO has gone.
    """
    descriptor = _descriptor(device)
    # A descriptor is used as it is: opening it again by name would truncate a file.
    number = os.open(device, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
    with os.fdopen(number, "wb") as out, source.open("rb") as file:
        shutil.copyfileobj(file, out)


def remove_leftovers(folder: Path, *, own: bool = False) -> None:
    """Remove the temporary files and folders of killed processes of this machine from a folder, and no others.

    Args:
        folder: Where to look.
        own: Also remove those of this process.
    """
    machine = _machine()
    if machine is None:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None or found["machine"] != machine or entry.is_symlink():
                continue
            process = int(found["process"])
            is_left = _start_of(process) != int(found["start"]) or (own and process == os.getpid())
            with suppress(OSError):  # another process removed it
                if not is_left or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif entry.is_file(follow_symlinks=False):
                    Path(entry.path).unlink()


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path such as `/dev/stdout` stands for; None for other paths."""
    found = _DESCRIPTOR.fullmatch(str(path))
    if found is None:
        return None
    return _STANDARD[found["name"]] if found["name"] else int(found["number"])


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OutputExistsError(f"{str(path)!r} is a folder")
    if path.exists() and not overwrite and not is_device(path):
        raise OutputExistsError(f"{str(path)!r} exists: choose another name, or overwrite it")


def _mode(target: Path, like: Path | None) -> int:
    """Return the permissions that a new file may have, before the umask."""
    mode = 0o666
    for path in (like, target):
        if path is not None:
            with suppress(OSError):
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    mode &= status.st_mode
    return mode


def temporary_path(path: Path) -> Path:
    """Return a new hidden name beside a file, of the pattern that `remove_leftovers` knows."""
    process = os.getpid()
    owner = f"{_machine() or _UNKNOWN}-{process}-{_start_of(process) or 0}"
    return path.with_name(f".{_cut(path.stem)}-frcrn-{owner}-{secrets.token_hex(4)}{_cut(path.suffix)}")


def _cut(text: str) -> str:
    """Cut a part of a name at a whole character."""
    while len(os.fsencode(text)) > _MAX_PART_BYTES:
        text = text[:-1]
    return text


@cache
def _machine() -> str | None:
    """Return a digest of what makes process numbers unique, the boot of the machine and the namespace; Linux only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return None
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:8]


def _start_of(process: int) -> int | None:
    """Return when a process started, in clock ticks after the boot; None if there is no such process."""
    try:
        status = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    return int(status.rpartition(b")")[2].split()[19])
