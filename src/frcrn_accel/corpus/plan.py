"""Which input becomes which output: folders, lists and manifests, shards of a job, and what is done in one go."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from frcrn_accel.corpus.storage import is_remote, list_remote
from frcrn_accel.errors import CorpusError
from frcrn_accel.files import audio_files, check_targets

__all__ = ["JOURNAL_NAME", "Job", "Shard", "Task", "in_tars", "one_by_one", "read_inputs"]

JOURNAL_NAME = "corpus"
LIST_SUFFIX, MANIFEST_SUFFIX = ".txt", ".jsonl"
_TAR_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Job:
    """One file.

    Attributes:
        source: Path or URL of the recording.
        output: Where it goes, relative to the output folder, with `/`.
    """

    source: str
    output: str


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker does in one go: one file, or the files of one tar.

    Attributes:
        output: The file that it makes, relative to the output folder, with `/`.
        jobs: What goes into it.
        is_tar: Whether it is a tar of the jobs' outputs.
    """

    output: str
    jobs: tuple[Job, ...]
    is_tar: bool = False


@dataclass(frozen=True)
class Shard:
    """One part of a job that several machines share.

    Attributes:
        number: Which, from 1.
        count: Of how many.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`"3/16"`.

        Raises:
            CorpusError: It is no such thing.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise CorpusError(f"{text!r} is no shard: give one as 3/16, from 1/16 to 16/16")
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """What names of its own files end in; nothing where there is one shard."""
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"

    def holds(self, output: str) -> bool:
        """Whether a file belongs to it. It depends on the name alone: files that come later move no others."""
        digest = hashlib.sha256(output.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


def read_inputs(inputs: str, out: str) -> list[Job]:
    """All files of a corpus, sorted by output.

    Args:
        inputs: A folder, whose tree is mirrored; a `.txt` file with a path or URL in each line; or a `.jsonl` file
            with an object in each line: `"input"`, and `"output"` if it is to have another name. Paths in it start
            from its folder. Folders and lists can be URLs.
        out: The output folder; what is in it is no input.

    Raises:
        CorpusError: There is no such thing, it names no audio, a line is wrong, or two inputs have one output.
    """
    suffix = PurePosixPath(inputs).suffix.lower()
    if suffix in (LIST_SUFFIX, MANIFEST_SUFFIX) and not Path(inputs).is_dir():
        jobs = _read_manifest(inputs, suffix)
    elif is_remote(inputs):
        jobs = [Job(source, name) for source, name in list_remote(inputs)]
    else:
        jobs = _in_folder(Path(inputs), out)
    if not jobs:
        raise CorpusError(f"{inputs!r} names no audio files")
    check_targets((job.source, job.output) for job in jobs)
    return sorted(jobs, key=lambda job: job.output)


def one_by_one(jobs: Iterable[Job]) -> Iterator[Task]:
    """Each file by itself."""
    return (Task(job.output, (job,)) for job in jobs)


def in_tars(jobs: Sequence[Job], per_tar: int, shard: Shard) -> Iterator[Task]:
    """WebDataset shards: tars of so many files, the last of fewer.

    A sample of WebDataset is called what its name has before the first dot of its last part, so other dots there
    become `_`.

    Raises:
        CorpusError: Two files would be one sample.
    """
    named = [Job(job.source, _sample_name(job.output)) for job in jobs]
    check_targets((job.source, str(PurePosixPath(job.output).with_suffix(""))) for job in named)
    rest = iter(named)
    number = 0
    while group := tuple(islice(rest, per_tar)):
        yield Task(f"{JOURNAL_NAME}{shard.suffix}-{number:0{_TAR_DIGITS}}.tar", group, is_tar=True)
        number += 1


def _sample_name(output: str) -> str:
    path = PurePosixPath(output)
    return str(path.with_name(path.stem.replace(".", "_") + path.suffix))


def _in_folder(folder: Path, out: str) -> list[Job]:
    if not folder.is_dir():
        raise CorpusError(
            f"{str(folder)!r} {'is no folder' if folder.exists() else 'does not exist'}: give a folder, a list "
            f"({LIST_SUFFIX}) or a manifest ({MANIFEST_SUFFIX})"
        )
    target = None if is_remote(out) else Path(out).resolve()
    if target == folder.resolve():
        raise CorpusError("input and output are one folder: give another one for the output")
    return [Job(str(file), file.relative_to(folder).as_posix()) for file in audio_files(folder, but_not_in=target)]


def _read_manifest(path: str, suffix: str) -> list[Job]:
    """Jobs of a list or a manifest."""
    if is_remote(path):
        from frcrn_accel.corpus.storage import read_remote

        content = read_remote(path)
        folder = path.rpartition("/")[0]
    else:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise CorpusError(f"{path!r} cannot be read: {error.strerror}") from error
        folder = str(Path(path).parent)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path!r} is no text in UTF-8: {error.reason} at byte {error.start}") from error
    jobs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path!r}, line {number}"
        source, output = _parse_manifest_line(line, where) if suffix == MANIFEST_SUFFIX else (line.strip(), None)
        jobs.append(Job(_from(folder, source), _checked_output(output or _mirrored(source), where)))
    return jobs


def _parse_manifest_line(line: str, where: str) -> tuple[str, str | None]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: no JSON: {error}") from error
    source, output = (values.get("input"), values.get("output")) if isinstance(values, dict) else (None, None)
    if not isinstance(source, str) or not source or not isinstance(output, (str, type(None))):
        raise CorpusError(f'{where}: expected {{"input": PATH}}, with "output": NAME if it is to have another name')
    return source, output


def _from(folder: str, source: str) -> str:
    """A path as it is, or from the list's folder."""
    if is_remote(source) or Path(source).is_absolute():
        return source
    return f"{folder}/{source}" if is_remote(folder) else str(Path(folder) / source)


def _mirrored(source: str) -> str:
    """Where an input goes that is named in a list: its path below the list's folder, or below the root."""
    if is_remote(source):
        parts = urlsplit(source)
        return f"{parts.netloc}{parts.path}"
    path = Path(source)
    return path.relative_to(path.anchor).as_posix()


def _checked_output(output: str, where: str) -> str:
    """The name of an output, which must stay in the output folder."""
    path = PurePosixPath(output)
    hidden = path.parts and path.parts[0].startswith(f".{JOURNAL_NAME}")  # the folder of files that are not ready
    if path.is_absolute() or ".." in path.parts or not path.name or hidden or "\0" in output:
        raise CorpusError(
            f'{where}: {output!r} is no name below the output folder: give one in a manifest, as "output"'
        )
    return str(path)
