"""Do one task in a worker, wherever it runs: denoise one file, or the files of one tar."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import math
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.atomic import replacing
from frcrn_accel.corpus.journal import Entry, part_name
from frcrn_accel.corpus.plan import Recording, Task
from frcrn_accel.corpus.storage import fetch, local_path, put
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import AudioError, CorpusError, FrcrnAccelError, one_line
from frcrn_accel.files import FILM_SUFFIXES, AudioFile, Sound, create_audio, is_film, open_audio, write_film
from frcrn_accel.notices import collected_notices

__all__ = ["MAX_TRIES", "Result", "Work", "Worker", "failed", "text_of"]

MAX_TRIES = 3  # for a file whose worker dies
_DNSMOS_MAX_S = 600.0  # of a file; an hour would take a minute and a quarter of a gigabyte
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Work:
    """How to process files; each worker gets a copy.

    Attributes:
        denoiser: Options of the denoiser.
        parts: The journal's folder of outputs that are not at their names yet; None if the worker does not share it.
        url: URL of the output folder, if workers store outputs there; None if they leave them in `parts`.
        dnsmos: Whether to score each file before and after.
        skip_clean: Files with at least this DNSMOS OVRL in each channel are copied unchanged; None to denoise all.
    """

    denoiser: DenoiserOptions
    parts: Path | None
    url: str | None = None
    dnsmos: bool = False
    skip_clean: float | None = None


@dataclass(frozen=True)
class Result:
    """The result of a task.

    Attributes:
        output: Output of the task.
        entries: A line of the journal for each recording.
        stop: Why the whole job must stop, e.g. a full disk; None if it can continue.
    """

    output: str
    entries: tuple[Entry, ...]
    stop: str | None = None

    @property
    def is_made(self) -> bool:
        """Whether the output was made."""
        return any(entry.sha256 is not None for entry in self.entries)


class Worker:
    """A denoiser that does tasks.

    Args:
        work: How to do them.
        note_progress: Called from time to time while a task makes progress.

    Raises:
        FrcrnAccelError: See `Denoiser`.
    """

    def __init__(self, work: Work, note_progress: Callable[[], None] = lambda: None) -> None:
        self._work = work
        self._note_progress = note_progress
        self._denoiser = work.denoiser.open()

    def do(self, task: Task) -> Result:
        """Do a task. Nothing is raised: the error of a file is in its entry."""
        work = self._work
        try:
            with self._scratch() as scratch:
                folder = scratch if work.parts is None or work.url is not None else work.parts
                made = folder / part_name(task.output)
                entries = [
                    self._try(recording, scratch, scratch / part_name(recording.output) if task.is_tar else made)
                    for recording in task.recordings
                ]
                if all(entry.error is not None for entry in entries):
                    return Result(task.output, tuple(_in_output(entry, task) for entry in entries))
                if task.is_tar:
                    _write_tar(made, scratch, entries)
                digest, size = _sync(made)
                self._note_progress()
                if work.url is not None:
                    put(made, work.url, task.output, self._note_progress)
        except Exception as error:
            if _concerns_all(error):
                return Result(task.output, (), stop=text_of(error))
            return failed(task, text_of(error))
        return Result(task.output, tuple(_in_output(entry, task, digest, size) for entry in entries))

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """Create a folder for a task.

        Raises:
            CorpusError: The folder was removed meanwhile.
        """
        parts = self._work.parts
        try:
            with tempfile.TemporaryDirectory(prefix="task-", dir=parts, ignore_cleanup_errors=True) as name:
                scratch = Path(name)
                yield scratch
                if not scratch.is_dir():
                    raise _removed(scratch)
        except FileNotFoundError as error:
            if parts is None or parts.is_dir():
                raise
            raise _removed(parts) from error

    def _try(self, recording: Recording, scratch: Path, target: Path) -> Entry:
        source = local_path(recording.source, scratch)

        def named(text: str) -> str:
            return text.replace(str(target), recording.output).replace(str(source), recording.source)

        self._note_progress()
        try:
            fetch(recording.source, source, self._note_progress)
            if source.exists() and not source.is_file():  # a pipe or a device may never end
                raise AudioError(f"{str(source)!r} is not a regular file")
            with collected_notices() as notices:
                entry = self._make(recording, source, target)
            found = dict.fromkeys(named(text) for text in (*notices, *entry.warnings))
            return dataclasses.replace(entry, warnings=tuple(found))
        except Exception as error:
            if _concerns_all(error):
                raise
            if not scratch.is_dir():
                raise _removed(scratch) from error
            return Entry(recording.source, recording.output, error=named(text_of(error)))
        finally:
            if source.parent == scratch:
                source.unlink(missing_ok=True)

    def _make(self, recording: Recording, source: Path, target: Path) -> Entry:
        before = None
        if self._work.dnsmos or self._work.skip_clean is not None:
            before, lowest = _dnsmos(source)
            if self._work.skip_clean is not None and lowest is not None and lowest >= self._work.skip_clean:
                duration_s = _copy(source, target)
                return Entry(
                    recording.source, recording.output, duration_s=duration_s, copied=True, dnsmos_before=before
                )
        report = self._denoiser.denoise_file(
            source, target, overwrite=True, progress=lambda done_s, total_s: self._note_progress()
        )
        factor = report.real_time_factor
        return Entry(
            recording.source,
            recording.output,
            duration_s=report.duration_s,
            processing_s=report.processing_s,
            real_time_factor=None if math.isnan(factor) else factor,
            clipped_samples=report.clipped_samples,
            dnsmos_before=before,
            dnsmos_after=_dnsmos(target)[0] if self._work.dnsmos else None,
            warnings=report.warnings,
        )


def failed(task: Task, error: str) -> Result:
    """Return the result of a task that failed as a whole."""
    entries = [Entry(recording.source, recording.output, error=error) for recording in task.recordings]
    return Result(task.output, tuple(_in_output(entry, task) for entry in entries))


def text_of(error: Exception) -> str:
    """Return an error as one line."""
    if isinstance(error, FrcrnAccelError):
        return str(error)
    return one_line(error, with_type=True)


def _removed(path: Path) -> CorpusError:
    return CorpusError(f"the folder of unfinished files {str(path)!r} was removed while the job ran")


def _in_output(entry: Entry, task: Task, digest: str | None = None, size: int | None = None) -> Entry:
    """Complete the entry of a file when the output is made."""
    if not task.is_tar:
        return dataclasses.replace(entry, sha256=digest, bytes=size)
    return dataclasses.replace(
        entry, sha256=digest, bytes=size, output=task.output, member=entry.output, members=len(task.recordings)
    )


def _concerns_all(error: BaseException | None) -> bool:
    """Return whether all other files would fail too: no space is left, or the storage refuses outputs."""
    if isinstance(error, CorpusError):
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__
    return False


def _sync(path: Path) -> tuple[str, int]:
    """Sync a file to disk; return its digest and its size in bytes."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
    return sha256_of(path), path.stat().st_size


def _copy(source: Path, target: Path) -> float:
    """Copy a recording unchanged, or convert it to the format of the target; return its length in seconds."""
    file = open_audio(source)
    if source.suffix.lower() == target.suffix.lower():
        with replacing(target, overwrite=True) as temporary:
            shutil.copyfile(source, temporary)
        return float(sum(block.shape[1] for block in file.blocks()) / file.sample_rate_hz)
    if target.suffix.lower() in FILM_SUFFIXES and is_film(source):
        return _copy_film(source, target, file.tracks)
    samples = 0
    with create_audio(target, file, overwrite=True) as writer:
        for block in file.blocks():
            writer.write(block)
            samples += block.shape[1]
    return float(samples / file.sample_rate_hz)


def _copy_film(source: Path, target: Path, tracks: int) -> float:
    """Write a film in another container; return the length of its longest track in seconds."""
    lengths_s = [0.0] * tracks

    def blocks(track: int, file: AudioFile) -> Iterator[NDArray[np.float32]]:
        for block in file.blocks():
            lengths_s[track] += block.shape[1] / file.sample_rate_hz
            yield block

    files = [open_audio(source, track) for track in range(tracks)]
    sounds = {track: Sound(file, blocks(track, file)) for track, file in enumerate(files)}
    write_film(target, source, sounds, overwrite=True)
    return max(lengths_s)


def _dnsmos(path: Path) -> tuple[dict[str, float] | None, float | None]:
    """Return the DNSMOS of a file, mean over its channels, and the lowest OVRL of a channel; None for no audio."""
    from frcrn_accel.network.topology import SAMPLE_RATE_HZ
    from frcrn_accel.quality import dnsmos
    from frcrn_accel.quality.clips import read_channels

    channels = read_channels(path, SAMPLE_RATE_HZ, _DNSMOS_MAX_S)
    if not channels.size:
        return None, None
    scores = [dnsmos(channel) for channel in channels]
    means = {name: sum(getattr(score, name) for score in scores) / len(scores) for name in scores[0]._fields}
    return means, min(score.ovrl for score in scores)


def _write_tar(target: Path, folder: Path, entries: Sequence[Entry]) -> None:
    """Write a WebDataset shard whose bytes depend on its content alone, without times and owners.

    Each sample is the audio and a `.json` with its entry. Files that failed are left out.
    """
    with replacing(target, overwrite=True) as temporary, tarfile.open(temporary, "w") as tar:
        for entry in entries:
            if entry.error is not None:
                continue
            path = folder / part_name(entry.output)
            about = {
                name: value
                for name, value in dataclasses.asdict(entry).items()
                if name
                in ("input", "duration_s", "clipped_samples", "copied", "dnsmos_before", "dnsmos_after", "warnings")
            }
            text = (json.dumps(about, allow_nan=False) + "\n").encode()
            with path.open("rb") as file:
                member = tarfile.TarInfo(entry.output)
                member.size = path.stat().st_size
                tar.addfile(member, file)
            member = tarfile.TarInfo(str(PurePosixPath(entry.output).with_suffix(".json")))
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
