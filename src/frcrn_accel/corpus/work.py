"""What a worker does, whichever engine runs it: one file, or the files of one tar."""

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from frcrn_accel.atomic import replacing
from frcrn_accel.corpus.journal import Entry, part_name
from frcrn_accel.corpus.plan import Job, Task
from frcrn_accel.corpus.storage import fetch, local_path, put
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import CorpusError, FrcrnAccelError
from frcrn_accel.files import create_audio, open_audio

__all__ = ["MAX_TRIES", "Result", "Work", "Worker", "failed", "text_of"]

MAX_TRIES = 3  # of a file whose worker dies
_DNSMOS_MAX_S = 600.0  # of each file: the scores of an hour take a minute, and its samples a quarter of a gigabyte
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Work:
    """What is to be done with files; it goes to each worker.

    Attributes:
        options: Arguments of `Denoiser`.
        parts: The journal's folder of files that are not at their names yet; None if the worker does not share it.
        url: Of the output folder, if workers are to put outputs there; None if they leave them in `parts`.
        dnsmos: Whether each file is scored before and after.
        skip_clean: Files with at least this DNSMOS OVRL in each channel are copied as they are; None for none.
    """

    options: Mapping[str, Any]
    parts: Path | None
    url: str | None = None
    dnsmos: bool = False
    skip_clean: float | None = None


@dataclass(frozen=True)
class Result:
    """What became of a task.

    Attributes:
        output: Of the task.
        entries: A line for each of its jobs.
        stop: Why the job cannot go on at all, such as a full disk; None if it can.
    """

    output: str
    entries: tuple[Entry, ...]
    stop: str | None = None

    @property
    def is_made(self) -> bool:
        """Whether there is an output."""
        return any(entry.sha256 is not None for entry in self.entries)


class Worker:
    """One denoiser and what is around it.

    Args:
        work: What is to be done.

    Raises:
        FrcrnAccelError: What `Denoiser` raises.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._denoiser = Denoiser(**work.options)

    def do(self, task: Task) -> Result:
        """Make the output of a task. It raises nothing: what is wrong with a file is in its entry."""
        work = self._work
        try:
            with tempfile.TemporaryDirectory(prefix="task-", dir=work.parts) as name:
                scratch = Path(name)
                folder = scratch if work.parts is None or work.url is not None else work.parts
                made = folder / part_name(task.output)
                targets = [scratch / part_name(job.output) if task.is_tar else made for job in task.jobs]
                entries = [self._try(job, scratch, target) for job, target in zip(task.jobs, targets, strict=True)]
                if all(entry.error is not None for entry in entries):
                    return Result(task.output, tuple(_in_output(entry, task, None) for entry in entries))
                if task.is_tar:
                    _write_tar(made, scratch, entries)
                digest = _settled(made)
                if work.url is not None:
                    put(made, work.url, task.output)
        except Exception as error:
            if _concerns_all(error):
                return Result(task.output, (), stop=text_of(error))
            return failed(task, text_of(error))
        return Result(task.output, tuple(_in_output(entry, task, digest) for entry in entries))

    def _try(self, job: Job, scratch: Path, target: Path) -> Entry:
        source = local_path(job.source, scratch)
        try:
            fetch(job.source, source)
            return self._make(job, source, target)
        except Exception as error:
            if _concerns_all(error):
                raise
            text = text_of(error).replace(str(target), job.output).replace(str(source), job.source)
            return Entry(job.source, job.output, error=text)
        finally:
            if source.parent == scratch:
                source.unlink(missing_ok=True)

    def _make(self, job: Job, source: Path, target: Path) -> Entry:
        before = None
        if self._work.dnsmos or self._work.skip_clean is not None:
            before, lowest = _dnsmos(source)
            if self._work.skip_clean is not None and lowest >= self._work.skip_clean:
                duration_s = _copy(source, target)
                return Entry(job.source, job.output, duration_s=duration_s, copied=True, dnsmos_before=before)
        report = self._denoiser.denoise_file(source, target, overwrite=True)
        factor = report.real_time_factor
        return Entry(
            job.source,
            job.output,
            duration_s=report.duration_s,
            processing_s=report.processing_s,
            real_time_factor=None if math.isnan(factor) else factor,
            clipped_samples=report.clipped_samples,
            dnsmos_before=before,
            dnsmos_after=_dnsmos(target)[0] if self._work.dnsmos else None,
        )


def failed(task: Task, error: str) -> Result:
    """The result of a task that gave nothing."""
    entries = [Entry(job.source, job.output, error=error) for job in task.jobs]
    return Result(task.output, tuple(_in_output(entry, task, None) for entry in entries))


def text_of(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, FrcrnAccelError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"


def _in_output(entry: Entry, task: Task, digest: str | None) -> Entry:
    """The entry of a file with what is known once the output is made."""
    if not task.is_tar:
        return dataclasses.replace(entry, sha256=digest)
    return dataclasses.replace(entry, sha256=digest, output=task.output, member=entry.output, members=len(task.jobs))


def _concerns_all(error: BaseException | None) -> bool:
    """Whether an error would be that of every other file too: there is no room, or the outputs' storage refuses."""
    if isinstance(error, CorpusError):
        return True
    while error is not None:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        error = error.__cause__
    return False


def _settled(path: Path) -> str:
    """See that a file is on the disk; its digest."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())
    return sha256_of(path)


def _copy(source: Path, target: Path) -> float:
    """Keep a recording as it is, in another format if the target has one; its length, s."""
    file = open_audio(source)
    if source.suffix.lower() == target.suffix.lower():
        with replacing(target, overwrite=True) as temporary:
            shutil.copyfile(source, temporary)
        return file.samples / file.sample_rate_hz
    samples = 0
    with create_audio(target, file, overwrite=True) as writer:
        for block in file.blocks():
            writer.write(block)
            samples += block.shape[1]
    return samples / file.sample_rate_hz


def _dnsmos(path: Path) -> tuple[dict[str, float], float]:
    """DNSMOS of a file, mean over its channels, and the OVRL of the channel that has the lowest."""
    from frcrn_accel.quality.clips import read_channels
    from frcrn_accel.quality.metrics import SAMPLE_RATE_HZ, dnsmos

    scores = [dnsmos(channel) for channel in read_channels(path, SAMPLE_RATE_HZ, _DNSMOS_MAX_S)]
    means = {name: sum(getattr(score, name) for score in scores) / len(scores) for name in scores[0]._fields}
    return means, min(score.ovrl for score in scores)


def _write_tar(target: Path, folder: Path, entries: Sequence[Entry]) -> None:
    """A WebDataset shard that depends on what is in it alone: no times, no owners.

    Each sample is the audio, and what is known of it in a `.json` beside it. Files that failed are not in it.
    """
    with replacing(target, overwrite=True) as temporary, tarfile.open(temporary, "w") as tar:
        for entry in entries:
            if entry.error is not None:
                continue
            path = folder / part_name(entry.output)
            about = {
                name: value
                for name, value in dataclasses.asdict(entry).items()
                if name in ("input", "duration_s", "clipped_samples", "copied", "dnsmos_before", "dnsmos_after")
            }
            text = (json.dumps(about) + "\n").encode()
            with path.open("rb") as file:
                member = tarfile.TarInfo(entry.output)
                member.size = path.stat().st_size
                tar.addfile(member, file)
            member = tarfile.TarInfo(str(PurePosixPath(entry.output).with_suffix(".json")))
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
