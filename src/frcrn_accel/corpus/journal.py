"""Record what a job has done, in a file of JSON lines beside the outputs.

The first line holds the settings; every other line holds the result of one file. Lines are only appended, each with
one write. An output is made in this order:

1. it is written to a separate folder beside the outputs, and synced to disk,
2. its line, with its digest, is appended to the journal, and synced to disk,
3. it is moved to its name.

So after a job was killed, or the power failed, an output without a line is deleted and made again. An output with a
line is either at its name or still in the separate folder, from where it is moved. A line without a newline was cut
off and is dropped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from typing_extensions import Self

from frcrn_accel.atomic import link_in_path, replacing
from frcrn_accel.corpus.plan import Task, leads_out
from frcrn_accel.corpus.storage import names_refused
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import AudioError, CorpusError, OutputExistsError

__all__ = ["Entry", "Journal", "part_name"]

SCHEMA_VERSION = 1
_LOCK = "lock"
_HEAD = "corpus"
_TEXT, _COUNT, _NOTHING = (str,), (int,), (type(None),)
_HEAD_TYPES = {"replaces": (bool,), "others": (list,), "settings": (dict,)}
_LINE_TYPES = {  # what is needed to resume
    "output": _TEXT,
    "sha256": _TEXT + _NOTHING,
    "member": _TEXT + _NOTHING,
    "members": _COUNT + _NOTHING,
    "error": _TEXT + _NOTHING,
}


@dataclass(frozen=True)
class Entry:
    """The result of one file: a line of the journal.

    Attributes:
        input: Path or URL of the recording.
        output: Path of the output, or of the tar that contains it, relative to the output folder.
        member: Name of the output in the tar; None outside of tars.
        sha256: Digest of the file at `output`; None if the file was not made.
        bytes: Size of that file; None if it was not made, or in journals of earlier versions.
        duration_s: Length of the audio; None if the recording failed.
        processing_s: Time to denoise it, including reading and writing.
        real_time_factor: Processing time over audio time; None for a file without audio.
        clipped_samples: Samples beyond full scale that an integer encoding clipped.
        copied: Whether the recording was clean already and was copied unchanged.
        dnsmos_before: DNSMOS of the recording, mean over its channels; None if it was not scored.
        dnsmos_after: DNSMOS of the output, likewise.
        error: Why the recording failed; None if it did not.
        members: Number of lines of the tar; None outside of tars.
        warnings: What was missing or damaged in the recording, and what the output cannot keep.
    """

    input: str
    output: str
    member: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    duration_s: float | None = None
    processing_s: float | None = None
    real_time_factor: float | None = None
    clipped_samples: int = 0
    copied: bool = False
    dnsmos_before: Mapping[str, float] | None = None
    dnsmos_after: Mapping[str, float] | None = None
    error: str | None = None
    members: int | None = None
    warnings: tuple[str, ...] = ()


def part_name(output: str) -> str:
    """Return the name of an output until it is moved: short, and the same in each run."""
    digest = hashlib.sha256(output.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return digest + PurePosixPath(output).suffix


class Journal:
    """The journal of a job, and the folder of outputs that are not at their names yet.

    It is locked until the block ends: one job at a time can use it.

    Args:
        path: Path of the journal, which is created if necessary, with its parent folders.
        out: Output folder; None if it is not a local folder, in which case the workers store outputs under their
            names themselves.
        settings: Everything that determines the outputs, as plain values.
        restart: Drop what an earlier job has done; existing outputs are replaced.
        existing_outputs: Returns the outputs that exist when a job starts, where `out` is not a local folder.

    Attributes:
        path: As given.
        parts: The folder of outputs that are not at their names yet.

    Raises:
        CorpusError: The journal cannot be read or written, is not a journal, belongs to a job with other settings, or
            is in use by another job; or it or the folder of unfinished outputs is a link.
    """

    def __init__(
        self,
        path: Path,
        out: Path | None,
        settings: Mapping[str, Any],
        *,
        restart: bool,
        existing_outputs: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.path, self._out = path, out
        self.parts = path.with_name(f".{path.stem}")
        self._digests: dict[str, str] = {}  # by complete output
        self._sizes: dict[str, int] = {}  # likewise, in bytes, where it is known
        self._made: set[str] = set()  # outputs that this job has made at some time
        self._damaged: set[str] = set()
        self._members: dict[str, dict[str, bool]] = {}  # by tar: whether each member succeeded
        with ExitStack() as stack:
            self._lock(stack)
            self._head = self._begin(settings, restart, existing_outputs)
            self._existing = set(self._head["others"])
            self._file = stack.enter_context(self._opened())
            self._settle()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Delete unfinished outputs, and unlock the journal."""
        for path, output in self._unplaced():
            if output is None:
                _drop(path)
        self._stack.close()

    def has(self, task: Task) -> bool:
        """Return whether a task is done completely, and its output exists in its full size."""
        if task.output not in self._digests:
            return False
        if self._out is not None and not self._is_whole(self._out / task.output, self._sizes.get(task.output)):
            self._damaged.add(task.output)
        if task.output in self._damaged:
            return False
        members = self._members.get(task.output, {})
        return not task.is_tar or all(members.get(part.output, False) for part in task.recordings)

    def verify(self, digest_of: Callable[[str], str | None] | None = None) -> None:
        """Check the digests of all outputs that are done. `has` is false for those that are lost or damaged.

        Args:
            digest_of: Returns the digest of an output, or None if it does not exist; needed where `out` is a URL.
        """
        if digest_of is None:
            assert self._out is not None
            out = self._out

            def digest_of(output: str) -> str | None:
                try:
                    return sha256_of(out / output)
                except OSError:  # it is lost, or cannot be read
                    return None

        self._damaged |= {output for output, digest in self._digests.items() if digest_of(output) != digest}

    def is_damaged(self, output: str) -> bool:
        """Return whether an output of this job was found to be lost, cut or damaged, by `has` or `verify`."""
        return output in self._damaged

    def would_overwrite(self, output: str) -> bool:
        """Return whether an output exists that this job has not made and must not replace.

        Raises:
            AudioError: The file system cannot hold an output of this name, or a link is in its path.
        """
        if self._out is None:  # outputs of this job can exist without a line, so the list of its first run decides
            return output in self._existing
        _refuse_links(self._out, output)
        exists = False
        with names_refused(output), suppress(FileNotFoundError):
            (self._out / output).lstat()
            exists = True
        return not self._head["replaces"] and output not in self._made and exists

    def add(self, entries: Sequence[Entry]) -> None:
        """Append the lines of a task, with one write.

        Raises:
            CorpusError: The journal cannot be written, e.g. because the disk is full.
        """
        lines = [dataclasses.asdict(entry) for entry in entries]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("ascii")
        with self._writing():
            while text:  # a full disk takes a part and refuses the rest
                text = text[self._file.write(text) :]
        for line in lines:
            self._note(line)

    def sync(self) -> None:
        """Sync the lines to disk.

        Raises:
            CorpusError: The journal cannot be written.
        """
        with self._writing():
            os.fsync(self._file.fileno())
            if not os.fstat(self._file.fileno()).st_nlink:
                raise CorpusError(f"the journal {str(self.path)!r} was removed while the job ran")

    def place(self, output: str) -> None:
        """Move an output whose lines are in the journal to its name.

        Raises:
            AudioError: The file system cannot hold an output of this name, or a link is in its path; it is deleted.
            CorpusError: The folder cannot be created or written.
        """
        if self._out is None:
            return
        target, part = self._out / output, self.parts / part_name(output)
        try:
            _refuse_links(self._out, output)
            with names_refused(output):
                target.parent.mkdir(parents=True, exist_ok=True)
                part.replace(target)
        except AudioError:
            part.unlink(missing_ok=True)
            self._forget(output)
            raise
        except OSError as error:
            if not part.exists():
                raise CorpusError(
                    f"{str(part)!r}, the finished {output!r}, was removed while the job ran: run the same command to "
                    "make it again"
                ) from error
            raise CorpusError(f"{str(target)!r} cannot be written: {error.strerror}") from error

    def _lock(self, stack: ExitStack) -> None:
        folder = self.path.parent
        for path in (self.path, self.parts, self.parts / _LOCK):
            if path.is_symlink():  # the job would write to, and delete, what it points to
                raise CorpusError(f"{str(path)!r} is a link: remove it")
        try:
            while not self._try_lock(stack):
                pass
        except OSError as error:
            raise CorpusError(f"folder {str(folder)!r} cannot be written: {error.strerror}") from error
        except NotImplementedError as error:
            raise CorpusError(f"the file system of {str(folder)!r} does not support locking: {error}") from error

    def _try_lock(self, stack: ExitStack) -> bool:
        """Lock the journal; return False if a job that ended just now has removed the folder meanwhile."""
        from filelock import FileLock, Timeout

        self.parts.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.parts / _LOCK, timeout=0)
        try:
            lock.acquire()
        except FileNotFoundError:
            return False
        except Timeout:
            raise CorpusError(
                f"another job is using {str(self.path)!r}: wait for it, or run each job with its own --shard"
            ) from None
        try:
            # A lock on a file that was removed keeps nobody out. The file that is there now must be the locked one.
            FileLock(self.parts / _LOCK, timeout=0).acquire().lock.release()
        except Timeout:
            stack.callback(lock.release)
            stack.callback(self._remove_parts)  # before the lock is released
            return True
        except FileNotFoundError:
            pass
        lock.release()
        return False

    def _remove_parts(self) -> None:
        """Remove the folder, unless outputs are left in it."""
        with suppress(OSError):
            if not self._unplaced():
                (self.parts / _LOCK).unlink(missing_ok=True)
                self.parts.rmdir()

    def _begin(
        self, settings: Mapping[str, Any], restart: bool, existing_outputs: Callable[[], Collection[str]]
    ) -> dict[str, Any]:
        """Read the journal, or write a new one; return its first line."""
        head: dict[str, Any] | None = None
        whole = 0
        with self._writing():
            if self.path.exists():
                with self.path.open("rb") as reader:
                    head = self._parse_head(reader.readline())
                    whole = reader.tell()
                    for line in reader if head is not None and not restart else ():
                        if not line.endswith(b"\n"):
                            break
                        self._note(self._parse_line(line))
                        whole += len(line)
            if head is None or restart:
                head = {
                    _HEAD: SCHEMA_VERSION,
                    "replaces": restart,
                    "others": [] if restart else sorted(existing_outputs()),
                    "settings": settings,
                }
                with replacing(self.path, overwrite=True) as temporary:
                    temporary.write_text(json.dumps(head, allow_nan=False) + "\n", encoding="ascii")
                return head
            if head["settings"] != settings:
                raise CorpusError(
                    f"{str(self.path)!r} belongs to a job with other settings: "
                    f"{_difference(head['settings'], settings)}; use the same, or start over with --overwrite"
                )
            os.truncate(self.path, whole)
        return head

    def _opened(self) -> FileIO:
        with self._writing():
            return self.path.open("ab", buffering=0)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OutputExistsError:
            raise
        except OSError as error:
            raise CorpusError(f"journal {str(self.path)!r} cannot be written: {error.strerror}") from error

    def _parse_head(self, line: bytes) -> dict[str, Any] | None:
        """Parse the first line; None if it was cut off."""
        if not line.endswith(b"\n") and f'{{"{_HEAD}": '.encode().startswith(line[: len(_HEAD) + 5]):
            return None
        head = self._parse(line)
        is_head = head.get(_HEAD) == SCHEMA_VERSION and _has_types(head, _HEAD_TYPES)
        if not is_head or not all(isinstance(other, str) for other in head["others"]):
            raise CorpusError(f"{str(self.path)!r} is not a journal of this version: move it away")
        return head

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise self._damage()
        return values

    def _parse_line(self, line: bytes) -> dict[str, Any]:
        values = self._parse(line)
        is_member = values.get("member") is not None
        if not _has_types(values, _LINE_TYPES) or is_member != (values["members"] is not None):
            raise self._damage()
        if values["sha256"] is not None and not _can_be_output(values["output"]):  # then no job has written this line
            raise self._damage()
        return values

    def _damage(self) -> CorpusError:
        return CorpusError(f"{str(self.path)!r} is damaged, or not a journal: move it away")

    def _note(self, line: Mapping[str, Any]) -> None:
        """Remember a line. Of several lines for one file the last counts."""
        output, sha256, member = line["output"], line["sha256"], line["member"]
        if member is not None:
            members = self._members.setdefault(output, {})
            members[member] = line["error"] is None
            if len(members) < line["members"]:
                return
        if sha256 is None:
            self._forget(output)
            return
        self._digests[output] = sha256
        self._made.add(output)
        self._damaged.discard(output)
        if line.get("bytes") is not None:
            self._sizes[output] = line["bytes"]

    def _forget(self, output: str) -> None:
        self._digests.pop(output, None)
        self._sizes.pop(output, None)

    @staticmethod
    def _is_whole(path: Path, size: int | None) -> bool:
        """Return whether an output exists in its size; where that is unknown, it must not be empty."""
        try:
            found = path.stat().st_size
        except OSError:
            return False
        return found == size if size is not None else found > 0

    def _unplaced(self) -> list[tuple[Path, str | None]]:
        """Return the files that are not at their names, with their outputs where the journal has lines for them."""
        names = {part_name(output): output for output in self._digests} if self._out is not None else {}
        try:
            paths = list(self.parts.iterdir())
        except FileNotFoundError:  # the folder was removed
            return []
        return [(path, names.get(path.name)) for path in paths if path.name != _LOCK]

    def _settle(self) -> None:
        """Move outputs that a killed job had not moved yet, and delete those that it had not finished."""
        for path, output in self._unplaced():
            if output is not None and sha256_of(path) == self._digests[output]:
                with suppress(AudioError):
                    self.place(output)
            else:
                _drop(path)


def _has_types(values: Mapping[str, Any], types: Mapping[str, tuple[type, ...]]) -> bool:
    """Return whether values have exactly these types, so that no bool is a number."""
    return values.keys() >= types.keys() and all(type(values[name]) in allowed for name, allowed in types.items())


def _can_be_output(output: str) -> bool:
    try:
        part_name(output)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return not leads_out(output)


def _refuse_links(out: Path, output: str) -> None:
    """Check that the path of an output below the output folder has no symbolic links.

    Raises:
        AudioError: It has one.
    """
    link = link_in_path(out, output)
    if link is not None:
        raise AudioError(
            f"{output!r} is not written: {str(link)!r} is a symbolic link, which may lead out of the output folder; "
            "replace it by a folder"
        )


def _drop(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # a worker of a killed job may still be writing
    else:
        path.unlink(missing_ok=True)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)
