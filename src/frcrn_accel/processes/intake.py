"""Check an untrusted file, and choose the limits and the format of its job, once its header is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from frcrn_accel.errors import AudioError
from frcrn_accel.file_denoising import FileJob

__all__ = ["Intake", "admit"]

_SAMPLE_BYTES = 4


@dataclass(frozen=True)
class Intake:
    """Limits for the source of a job, and how its target is named.

    Attributes:
        max_channels: Most channels; None for no limit.
        max_decoded_bytes: Longest audio, as 32-bit samples of all channels; None for no limit.
        choose_suffix: Give the target the suffix of the source's format, or of one close to it that can be written.
    """

    max_channels: int | None = None
    max_decoded_bytes: int | None = None
    choose_suffix: bool = False


def admit(job: FileJob, intake: Intake) -> FileJob:
    """Check the source of a job; return the job to run.

    Raises:
        AudioError: The source cannot be read, or has too many channels.
    """
    if intake == Intake():
        return job
    from frcrn_accel.files import open_audio
    from frcrn_accel.files.formats import writable_suffix

    file = open_audio(job.source, job.track)
    if intake.max_channels is not None and file.channels > intake.max_channels:
        raise AudioError(f"audio must have up to {intake.max_channels} channels, got {file.channels}")
    if intake.max_decoded_bytes is not None:
        longest_s = intake.max_decoded_bytes / (file.sample_rate_hz * file.channels * _SAMPLE_BYTES)
        job = dataclasses.replace(job, max_duration_s=min(job.max_duration_s, longest_s))
    if intake.choose_suffix:
        job = dataclasses.replace(job, target=job.target.with_name(job.target.name + writable_suffix(file)))
    return job
