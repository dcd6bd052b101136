"""What has been done, in lines of JSON beside the outputs.

The first line holds the settings; each line after it is what became of one file. Lines are only added, each by one
write. For each output things happen in this order:

1. it is made in a folder of its own beside the outputs, and is on the disk,
2. its line is added to the journal, with its digest, and is on the disk,
3. it is moved to its name.

So after a job was killed, or lost its power, an output without a line counts for nothing: it is dropped and made
anew. One with a line is at its name, or still where it was made, and is moved. A line that was cut off, which has no
newline, is dropped.
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

from frcrn_accel.atomic import replacing
from frcrn_accel.corpus.plan import Task
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import CorpusError, OutputExistsError

__all__ = ["Entry", "Journal", "part_name"]

SCHEMA_VERSION = 1
_LOCK = "lock"
_HEAD = "corpus"
_FIELDS = {"output", "sha256", "member", "members", "error"}  # those that are read again


@dataclass(frozen=True)
class Entry:
    """What became of one file: a line of the journal.

    Attributes:
        input: Path or URL of the recording.
        output: The file that was made, relative to the output folder: of the recording, or the tar it is in.
        member: Its name in the tar; None without one.
        sha256: Of the output; None if there is none.
        duration_s: Length of the audio; None if it failed.
        processing_s: Time it took, reading and writing included.
        real_time_factor: Processing time over audio time; None for a file without audio.
        clipped_samples: Samples beyond full scale that an integer encoding clipped.
        copied: Whether it was clean already, and the output is what came in.
        dnsmos_before: DNSMOS of the recording, mean over its channels; None if that was not asked for.
        dnsmos_after: The same of the output.
        error: Why it failed; None if it did not.
        members: How many files the tar has lines for; None without one.
    """

    input: str
    output: str
    member: str | None = None
    sha256: str | None = None
    duration_s: float | None = None
    processing_s: float | None = None
    real_time_factor: float | None = None
    clipped_samples: int = 0
    copied: bool = False
    dnsmos_before: Mapping[str, float] | None = None
    dnsmos_after: Mapping[str, float] | None = None
    error: str | None = None
    members: int | None = None


def part_name(output: str) -> str:
    """What a file is called until it is moved to its name: short, and the same in each run."""
    digest = hashlib.sha256(output.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return digest + PurePosixPath(output).suffix


class Journal:
    """The journal of a job, and the folder of files that are not at their names yet.

    One job at a time has it. Leaving the block lets go of it.

    Args:
        path: The file; it is made if it is not there, with the folders above it.
        out: Folder of the outputs; None if that is no local folder: outputs are then put at their names by those who
            make them.
        settings: All that decides what the outputs are, as JSON has it.
        begin_anew: Drop what an earlier job has done; its outputs, and others, are replaced.
        find_others: Gives the outputs that are there when the job begins, where `out` is no local folder.

    Attributes:
        parts: The folder.

    Raises:
        CorpusError: It cannot be read or written, is no journal, is one of a job with other settings, or another job
            has it.
    """

    def __init__(
        self,
        path: Path,
        out: Path | None,
        settings: Mapping[str, Any],
        *,
        begin_anew: bool,
        find_others: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.path, self._out = path, out
        self.parts = path.with_name(f".{path.stem}")
        self._digests: dict[str, str] = {}  # of outputs that are whole, by name
        self._members: dict[str, dict[str, bool]] = {}  # of tars: which are in the journal, and whether they are well
        with ExitStack() as stack:
            self._lock(stack)
            self._head = self._begin(settings, begin_anew, find_others)
            self._others = set(self._head["others"])
            self._file = stack.enter_context(self._opened())
            self._settle()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop what is not ready, and let go of the journal."""
        for path, output in self._unplaced():
            if output is None:
                _drop(path)
        self._stack.close()

    def has(self, task: Task) -> bool:
        """Whether a task was done, all of it, and its output is there."""
        if task.output not in self._digests or not (self._out is None or (self._out / task.output).exists()):
            return False
        members = self._members.get(task.output, {})
        return not task.is_tar or all(members.get(job.output, False) for job in task.jobs)

    def forbids(self, output: str) -> bool:
        """Whether there is an output that this job has not made and was not asked to replace."""
        if self._out is None:  # what this job was about to add a line for is there too: only the first run can tell
            return output in self._others
        return not self._head["replaces"] and output not in self._digests and (self._out / output).exists()

    def add(self, entries: Sequence[Entry]) -> None:
        """Add the lines of a task, by one write.

        Raises:
            CorpusError: The disk is full, or the like.
        """
        lines = [dataclasses.asdict(entry) for entry in entries]
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("ascii")
        with self._writing():
            while text:  # a full disk takes less than all, and refuses the rest
                text = text[self._file.write(text) :]
        for line in lines:
            self._note(line)

    def sync(self) -> None:
        """See that the lines are on the disk.

        Raises:
            CorpusError: They are not.
        """
        with self._writing():
            os.fsync(self._file.fileno())

    def place(self, output: str) -> None:
        """Move a file whose lines are there to its name.

        Raises:
            CorpusError: The folder cannot be made or written.
        """
        if self._out is None:
            return
        target = self._out / output
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.parts / part_name(output)).replace(target)
        except OSError as error:
            raise CorpusError(f"{str(target)!r} cannot be written: {error.strerror}") from error

    def _lock(self, stack: ExitStack) -> None:
        from filelock import FileLock, Timeout

        folder = self.path.parent
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(self.parts / _LOCK, timeout=0))
            stack.callback(self._remove_parts)  # while it is locked: nobody else is in it
        except Timeout:
            raise CorpusError(f"another job is at {str(self.path)!r}: wait for it, or give each a shard") from None
        except OSError as error:
            raise CorpusError(f"folder {str(folder)!r} cannot be written: {error.strerror}") from error
        except NotImplementedError as error:
            raise CorpusError(f"the file system of {str(folder)!r} has no locks: {error}") from error

    def _remove_parts(self) -> None:
        """If there is nothing left in it that waits for its name."""
        with suppress(OSError):
            if not self._unplaced():
                (self.parts / _LOCK).unlink(missing_ok=True)
                self.parts.rmdir()

    def _begin(
        self, settings: Mapping[str, Any], begin_anew: bool, find_others: Callable[[], Collection[str]]
    ) -> dict[str, Any]:
        """Read what was done, or begin; the first line."""
        head: dict[str, Any] | None = None
        whole = 0
        with self._writing():
            if self.path.exists():
                with self.path.open("rb") as reader:
                    head = self._parse_head(reader.readline())
                    whole = reader.tell()
                    for line in reader if head is not None and not begin_anew else ():
                        if not line.endswith(b"\n"):
                            break
                        self._note(self._parse(line))
                        whole += len(line)
            if head is None or begin_anew:
                head = {
                    _HEAD: SCHEMA_VERSION,
                    "replaces": begin_anew,
                    "others": [] if begin_anew else sorted(find_others()),
                    "settings": settings,
                }
                with replacing(self.path, overwrite=True) as temporary:
                    temporary.write_text(json.dumps(head) + "\n", encoding="ascii")
                return head
            if head["settings"] != settings:
                raise CorpusError(
                    f"{str(self.path)!r} is of a job with other settings: {_difference(head['settings'], settings)}; "
                    "give the same ones, or begin anew with --overwrite"
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
        """The first line; None for one that was cut off."""
        if not line.endswith(b"\n") and f'{{"{_HEAD}": '.encode().startswith(line[: len(_HEAD) + 5]):
            return None
        head = self._parse(line)
        if head.get(_HEAD) != SCHEMA_VERSION or not head.keys() >= {"replaces", "others", "settings"}:
            raise CorpusError(f"{str(self.path)!r} is no journal of this version: move it away")
        return head

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or (_HEAD not in values and not values.keys() >= _FIELDS):
            raise CorpusError(f"{str(self.path)!r} is damaged, or no journal: move it away")
        return values

    def _note(self, line: Mapping[str, Any]) -> None:
        """Take in a line. Of several for one file the last one counts."""
        output, sha256, member = line["output"], line["sha256"], line["member"]
        if member is not None:
            members = self._members.setdefault(output, {})
            members[member] = line["error"] is None
            if len(members) < line["members"]:
                return
        if sha256 is None:
            self._digests.pop(output, None)
        else:
            self._digests[output] = sha256

    def _unplaced(self) -> list[tuple[Path, str | None]]:
        """Files that are not at their names, and the names of those that have their lines."""
        names = {part_name(output): output for output in self._digests} if self._out is not None else {}
        return [(path, names.get(path.name)) for path in self.parts.iterdir() if path.name != _LOCK]

    def _settle(self) -> None:
        """Move what a killed job had not moved yet, and drop what it had not finished."""
        for path, output in self._unplaced():
            if output is not None and sha256_of(path) == self._digests[output]:
                self.place(output)
            else:
                _drop(path)


def _drop(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # a worker of a killed job may be at its last bytes there
    else:
        path.unlink(missing_ok=True)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in names)
