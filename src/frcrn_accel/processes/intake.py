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
        max_channels: Maximum number of channels; None for no limit.
        max_decoded_bytes: Maximum size of the audio, as 32-bit samples of all channels; None for no limit.
        choose_suffix: Give the targets the suffix of the source's format, or of one close to it that can be written.
        takes_films: Whether a film becomes a film if the suffix of the target is that of one. Otherwise only its
            sound is written.
    """

    max_channels: int | None = None
    max_decoded_bytes: int | None = None
    choose_suffix: bool = False
    takes_films: bool = True


def admit(job: FileJob, intake: Intake) -> FileJob:
    """Check the source of a job; return the job to run.

    Raises:
        AudioError: The source cannot be read, or has too many channels.
    """
    if intake == Intake():
        return job
    from frcrn_accel.files import FILM_SUFFIXES, is_film, open_audio
    from frcrn_accel.files.film import film_suffix
    from frcrn_accel.files.formats import writable_suffix

    file = open_audio(job.source, job.track)
    film = is_film(job.source)
    target, noise_target = job.target, job.noise_target
    if intake.choose_suffix:
        suffix = film_suffix(job.source) if film and intake.takes_films else writable_suffix(file)
        target = target.with_name(target.name + suffix)
        noise_target = noise_target and noise_target.with_name(noise_target.name + suffix)
    if film and not intake.takes_films and target.suffix == ".webm":
        target = target.with_suffix(".weba")  # which is never a film
        noise_target = noise_target and noise_target.with_suffix(".weba")
    files = [file]
    if film and job.track is None and target.suffix in FILM_SUFFIXES:  # all tracks are denoised, side by side
        files = [open_audio(job.source, track) for track in range(file.tracks)]
    most = max(one.channels for one in files)
    if intake.max_channels is not None and most > intake.max_channels:
        raise AudioError(f"audio must have up to {intake.max_channels} channels, got {most}")
    if intake.max_decoded_bytes is not None:
        second_bytes = sum(one.sample_rate_hz * one.channels * _SAMPLE_BYTES for one in files)
        longest_s = intake.max_decoded_bytes / second_bytes
        job = dataclasses.replace(job, max_duration_s=min(job.max_duration_s, longest_s))
    return dataclasses.replace(job, target=target, noise_target=noise_target)
