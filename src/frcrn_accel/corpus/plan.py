"""Plan a job: which input becomes which output, what belongs to a shard, and what a worker does at a time."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from frcrn_accel.corpus.storage import is_remote, key_of, list_remote
from frcrn_accel.errors import CorpusError
from frcrn_accel.files import check_targets, scan_folder
from frcrn_accel.files.formats import nearest_suffix

__all__ = [
    "JOURNAL_NAME",
    "Inputs",
    "Recording",
    "Shard",
    "Task",
    "accepted",
    "digest_of",
    "in_tars",
    "leads_out",
    "one_by_one",
    "read_inputs",
]

JOURNAL_NAME = "corpus"
LIST_SUFFIX, MANIFEST_SUFFIX = ".txt", ".jsonl"
_TAR_DIGITS = 6
_BLANKS = " \t\r\n"
_MAX_KEY_BYTES = 1024  # of object stores
# The folder of unfinished files, and the journal.
_OURS = re.compile(rf"\.{JOURNAL_NAME}|{JOURNAL_NAME}(-\d+-of-\d+)?\.jsonl\Z")


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording and the file that it becomes.

    Attributes:
        source: Path or URL of the recording.
        output: Path of the output, relative to the output folder, with `/`.
        refusal: Why it cannot be done, whatever it contains; None if it can be tried.
    """

    source: str
    output: str
    refusal: str | None = None


@dataclass(frozen=True)
class Inputs:
    """The recordings of a job, or of one of its shards, and the files that it leaves out.

    Attributes:
        recordings: The recordings, sorted by output.
        left_out: Why files and folders are left out, by their paths or URLs.
        other_suffixes: Number of files that are not audio by their suffix, by suffix in lower case.
        other_formats: Suffixes of formats that are read but not written, in lower case, with that of the outputs.
    """

    recordings: list[Recording]
    left_out: Mapping[str, str] = field(default_factory=dict)
    other_suffixes: Mapping[str, int] = field(default_factory=dict)
    other_formats: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A worker's unit of work: one file, or the files of one tar.

    Attributes:
        output: Path of the file it writes, relative to the output folder, with `/`.
        recordings: The recordings in it.
        is_tar: Whether it is a tar of their outputs.
    """

    output: str
    recordings: tuple[Recording, ...]
    is_tar: bool = False


@dataclass(frozen=True)
class Shard:
    """One part of a job that several machines share.

    Attributes:
        number: Number of the part, from 1.
        count: Number of parts.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parse text such as `"3/16"`.

        Raises:
            CorpusError: It is not of this form, or out of range.
        """
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise CorpusError(
                f"invalid shard {text!r}: write it as NUMBER/COUNT, e.g. 3/16 for the third of sixteen parts"
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def suffix(self) -> str:
        """Ending of the names of files that belong to this shard; empty for a job that is not divided."""
        return "" if self.count == 1 else f"-{self.number}-of-{self.count}"

    def holds(self, output: str) -> bool:
        """Return whether a file belongs to this shard.

        It depends on the name alone, so files that are added later do not move others to another shard.
        """
        digest = hashlib.sha256(output.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


def read_inputs(inputs: str, out: str) -> Inputs:
    """Read the list of recordings.

    Args:
        inputs: A folder, whose tree is mirrored; a `.txt` file with a path or URL on each line; or a `.jsonl` file
            with an object on each line: `"input"`, and optionally `"output"` for another name. Paths in a file are
            relative to its folder. Folders and files can be URLs.
        out: The output folder; files in it are not inputs.

    What cannot be done, such as a line that is wrong, a name that leads out of the output folder, or a folder that
    cannot be read, is refused alone: see `Recording.refusal`.

    Raises:
        CorpusError: `inputs` does not exist, names no audio files, or nothing in it can be done.
        AudioError: Two inputs have the same output.
    """
    suffix = PurePosixPath(inputs).suffix.lower()
    if suffix in (LIST_SUFFIX, MANIFEST_SUFFIX) and not Path(inputs).is_dir():
        found = Inputs(_read_manifest(inputs, suffix))
    elif is_remote(inputs):
        found = _in_storage(inputs)
    else:
        found = _in_folder(Path(inputs), out)
    recordings = found.recordings
    if not recordings:
        raise CorpusError(f"{inputs!r} names no audio files")
    recordings = _refuse_nested([_checked(recording, is_remote(out)) for recording in recordings])
    if not accepted(recordings):
        raise CorpusError(str(recordings[0].refusal))
    check_targets((recording.source, recording.output) for recording in accepted(recordings))
    return replace(
        found,
        recordings=sorted(recordings, key=lambda recording: recording.output),
        other_formats=_other_formats(accepted(recordings)),
    )


def accepted(recordings: Iterable[Recording]) -> list[Recording]:
    """Return the recordings that are not refused."""
    return [recording for recording in recordings if recording.refusal is None]


def one_by_one(recordings: Iterable[Recording]) -> Iterator[Task]:
    """Make a task of each recording."""
    return (Task(recording.output, (recording,)) for recording in accepted(recordings))


def in_tars(recordings: Sequence[Recording], per_tar: int, shard: Shard) -> Iterator[Task]:
    """Make tasks that write WebDataset tars, each of `per_tar` files, the last of fewer.

    WebDataset takes the name of a sample up to the first dot of its last part, so other dots there become `_`.

    Raises:
        AudioError: Two files would be one sample.
    """
    named = [Recording(recording.source, _sample_name(recording.output)) for recording in accepted(recordings)]
    check_targets((recording.source, str(PurePosixPath(recording.output).with_suffix(""))) for recording in named)
    rest = iter(named)
    number = 0
    while group := tuple(islice(rest, per_tar)):
        yield Task(f"{JOURNAL_NAME}{shard.suffix}-{number:0{_TAR_DIGITS}}.tar", group, is_tar=True)
        number += 1


def digest_of(recordings: Iterable[Recording]) -> str:
    """Return a digest of the sources and outputs of recordings, 16 hexadecimal digits."""
    lines = "\n".join(f"{recording.source}\t{recording.output}" for recording in recordings)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _sample_name(output: str) -> str:
    path = PurePosixPath(output)
    return str(path.with_name(path.stem.replace(".", "_") + path.suffix))


def _in_storage(folder: str) -> Inputs:
    names = list_remote(folder)
    hidden = {
        source for source, name in names if any(part.startswith(".") for part in name.split("/") if part != "..")
    }
    return Inputs(
        [Recording(source, _as_written(name)) for source, name in names if source not in hidden],
        dict.fromkeys(sorted(hidden), "hidden"),
    )


def _in_folder(folder: Path, out: str) -> Inputs:
    if not folder.is_dir():
        raise CorpusError(
            f"{str(folder)!r} {'is not a folder' if folder.exists() else 'does not exist'}: give a folder, a list "
            f"({LIST_SUFFIX}) or a manifest ({MANIFEST_SUFFIX})"
        )
    target = None if is_remote(out) else Path(out).resolve()
    if target == folder.resolve():
        raise CorpusError("the input and output folders are the same: choose another output folder")
    scan = scan_folder(folder, but_not_in=target)
    recordings = [Recording(str(file), _as_written(file.relative_to(folder).as_posix())) for file in scan.files]
    left_out = {}
    for item in scan.left_out:
        if item.is_error:
            name = item.path.relative_to(folder).as_posix()
            recordings.append(Recording(str(item.path), name, f"{str(item.path)!r} {item.reason}"))
        else:
            left_out[str(item.path)] = item.reason
    return Inputs(recordings, left_out, scan.other_suffixes)


def _checked(recording: Recording, is_key: bool) -> Recording:
    """Refuse a recording whose output would not be in the output folder under this very name."""
    if recording.refusal is not None:
        return recording
    try:
        name = _checked_output(recording.output, repr(recording.source))
    except CorpusError as error:
        return replace(recording, refusal=str(error))
    if name != recording.output:
        return replace(recording, refusal=f"{recording.output!r} is another spelling of {name!r}")
    if is_key and len(name.encode("utf-8", "surrogateescape")) > _MAX_KEY_BYTES:
        return replace(recording, refusal=f"the name of the output is longer than {_MAX_KEY_BYTES} bytes")
    return recording


def _refuse_nested(recordings: Sequence[Recording]) -> list[Recording]:
    """Refuse recordings whose output is below that of another, which would have to be a file and a folder."""
    outputs = {recording.output for recording in accepted(recordings)}

    def checked(recording: Recording) -> Recording:
        above = [str(path) for path in PurePosixPath(recording.output).parents if str(path) in outputs]
        if recording.refusal is not None or not above:
            return recording
        return replace(recording, refusal=f"{recording.output!r} is below {above[0]!r}, which is an output too")

    return [checked(recording) for recording in recordings]


def _read_manifest(path: str, suffix: str) -> list[Recording]:
    """Read a list or a manifest."""
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
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path!r} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    recordings = []
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # `splitlines` would split names at U+2028
        stripped = line.strip(_BLANKS)
        if not stripped:
            continue
        where = f"{path!r}, line {number}"
        try:
            source, output = _parse_manifest_line(line, where) if suffix == MANIFEST_SUFFIX else (stripped, None)
            output = _checked_output(output or _as_written(_mirrored(source)), where)
        except CorpusError as error:
            recordings.append(Recording(path, f"line {number}", str(error)))
        else:
            recordings.append(Recording(_from(folder, source), output))
    return recordings


def _parse_manifest_line(line: str, where: str) -> tuple[str, str | None]:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{where}: invalid JSON: {error}") from error
    source, output = (values.get("input"), values.get("output")) if isinstance(values, dict) else (None, None)
    if not isinstance(source, str) or not source or not isinstance(output, (str, type(None))):
        raise CorpusError(
            f'{where}: expected {{"input": PATH}}, or {{"input": PATH, "output": NAME}} for another name'
        )
    try:
        f"{source}{output or ''}".encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, as in "\ud800"
        raise CorpusError(f"{where}: a name has half of a surrogate pair, which no file name can have") from error
    return source, output


def _from(folder: str, source: str) -> str:
    """Resolve a path that may be relative to the folder of the list."""
    if is_remote(source) or Path(source).is_absolute():
        return source
    return f"{folder}/{source}" if is_remote(folder) else str(Path(folder) / source)


def _mirrored(source: str) -> str:
    """Return the output of an input in a list: its path below the folder of the list, or below the root."""
    if is_remote(source):
        return key_of(source)
    path = Path(source)
    return path.relative_to(path.anchor).as_posix()


def _as_written(name: str) -> str:
    """Return the output of an input of this name; `a.amr` becomes `a.amr.m4a`, so that `a.m4a` may be beside it."""
    suffix = PurePosixPath(name).suffix
    nearest = nearest_suffix(suffix)
    return name if nearest == suffix else f"{name}{nearest}"


def _other_formats(recordings: Iterable[Recording]) -> dict[str, str]:
    found = {}
    for recording in recordings:
        suffix = PurePosixPath(_mirrored(recording.source)).suffix
        nearest = nearest_suffix(suffix)
        if nearest != suffix and recording.output.endswith(suffix + nearest):
            found[suffix.lower()] = nearest
    return dict(sorted(found.items()))


def leads_out(output: str) -> bool:
    """Return whether an output is not a path below the output folder."""
    path, here = PurePosixPath(output), Path(output)  # on Windows, drives and backslashes lead out too
    is_outside = path.is_absolute() or bool(here.anchor) or ".." in path.parts or ".." in here.parts
    return is_outside or not path.name or "\0" in output


def _checked_output(output: str, where: str) -> str:
    """Check that an output stays in the output folder, and return it normalized."""
    path = PurePosixPath(output)
    is_ours = path.parts and _OURS.match(path.parts[0])
    if leads_out(output) or is_ours:
        raise CorpusError(
            f'{where}: {output!r} is not a path below the output folder: use a manifest with another "output"'
        )
    return str(path)
