"""Denoise a file from disk to disk: a recording, or the sound of a film."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import AudioError
from frcrn_accel.notices import collected_notices, notify
from frcrn_accel.pipeline import Engine, Signal, Treatment, denoise_signal, split_signal

if TYPE_CHECKING:
    from frcrn_accel.files import AudioFile

__all__ = ["KEEPS", "FileJob", "FileReport", "Keep", "check_keep"]

Keep = Literal["speech", "noise"]
KEEPS: tuple[str, ...] = get_args(Keep)


@dataclass(frozen=True)
class FileReport:
    """Result of `Denoiser.denoise_file`.

    Attributes:
        source: The file that was read.
        target: The file that was written.
        sample_rate_hz: Sample rate of the source; of a film, that of the first track that was denoised.
        channels: Its channels.
        duration_s: Duration of the audio; of a film, that of its longest track.
        processing_s: Time taken, reading and writing included.
        clipped_samples: Samples beyond full scale that an integer encoding clipped, in all files written.
        warnings: What was missing or damaged in the source, and what the target cannot keep, one line each.
        tracks: Numbers of the audio tracks that were denoised.
        is_film: Whether the target is a film: the picture and the rest were copied.
    """

    source: Path
    target: Path
    sample_rate_hz: int
    channels: int
    duration_s: float
    processing_s: float
    clipped_samples: int
    warnings: tuple[str, ...] = ()
    tracks: tuple[int, ...] = (0,)
    is_film: bool = False

    @property
    def real_time_factor(self) -> float:
        """Processing time over duration (RTF); NaN for a file without audio."""
        return self.processing_s / self.duration_s if self.duration_s else math.nan


@dataclass(frozen=True)
class FileJob:
    """A file to denoise; see `Denoiser.denoise_file` for what is not described here.

    Attributes:
        engine: The model.
        treatment: What to do besides running the model.
    """

    engine: Engine
    treatment: Treatment
    source: Path
    target: Path
    overwrite: bool
    progress: Callable[[float, float], None] | None
    max_duration_s: float
    keep: Keep
    noise_target: Path | None
    track: int | None

    def run(self) -> FileReport:
        """Denoise the file.

        Raises:
            Exception: See `Denoiser.denoise_file`.
        """
        from frcrn_accel.files import FILM_SUFFIXES, is_film, local_file, open_audio

        began = time.perf_counter()
        with collected_notices() as notices, local_file(self.source) as source:
            file = open_audio(source, self.track)
            if self.target.suffix.lower() in FILM_SUFFIXES and is_film(source):
                report = self._write_film(source, file)
            else:
                report = self._write_sound(file)
        return dataclasses.replace(
            report,
            source=self.source,
            processing_s=time.perf_counter() - began,
            warnings=tuple(notices),
        )

    def _write_sound(self, file: AudioFile) -> FileReport:
        from frcrn_accel.files import create_audio

        if file.tracks > 1 and self.track is None:
            notify(
                f"{str(self.source)!r} has {file.tracks} audio tracks: the first is used; choose another "
                "by its number"
            )
        done = _TrackProgress(self.progress)
        with ExitStack() as stack:
            writers = {self.keep: stack.enter_context(create_audio(self.target, file, overwrite=self.overwrite))}
            if self.noise_target is not None:
                writers["noise"] = stack.enter_context(
                    create_audio(self.noise_target, file, overwrite=self.overwrite)
                )
            for parts in self._parts(file, done, with_noise="noise" in writers):
                for name, writer in writers.items():
                    writer.write(parts[name])
        clipped = sum(writer.clipped_samples for writer in writers.values())
        return self._report(file, done.done_s, clipped, (file.track,))

    def _write_film(self, source: Path, first: AudioFile) -> FileReport:
        from frcrn_accel.files import Sound, open_audio, write_film

        if self.noise_target is not None:
            raise AudioError(f"{str(self.target)!r} is a film: write its noise to another film, with keep='noise'")
        numbers = range(first.tracks) if self.track is None else (self.track,)
        dones = {number: _TrackProgress(self.progress) for number in numbers}
        sounds = {}
        for number in numbers:
            file = open_audio(source, number)
            parts = self._parts(file, dones[number], with_noise=self.keep == "noise")
            sounds[number] = Sound(file, (part[self.keep] for part in parts))
        clipped = write_film(self.target, source, sounds, overwrite=self.overwrite)
        duration_s = max(done.done_s for done in dones.values())
        report = self._report(sounds[numbers[0]].like, duration_s, clipped, tuple(numbers))
        return dataclasses.replace(report, is_film=True)

    def _parts(
        self, file: AudioFile, done: _TrackProgress, *, with_noise: bool
    ) -> Iterator[dict[Keep, NDArray[np.float32]]]:
        """Yield the blocks of the speech, and of the noise if it is wanted."""
        rate_hz = file.sample_rate_hz
        max_samples = None if self.max_duration_s == math.inf else int(self.max_duration_s * rate_hz)

        def blocks() -> Iterator[NDArray[np.float32]]:
            for block in file.blocks():
                done.show(file)  # also while the level is measured: a long file is read twice before denoising
                yield block

        signal = Signal(blocks, rate_hz, file.channels, max_samples=max_samples)
        parts: Iterator[dict[Keep, NDArray[np.float32]]]
        if with_noise:
            split = split_signal(signal, self.engine, self.treatment)
            parts = ({"speech": speech, "noise": noise} for speech, noise in split)
        else:
            parts = ({"speech": speech} for speech in denoise_signal(signal, self.engine, self.treatment))
        for part in parts:
            done.samples += part["speech"].shape[1]
            done.show(file)
            yield part

    def _report(self, file: AudioFile, duration_s: float, clipped: int, tracks: tuple[int, ...]) -> FileReport:
        return FileReport(
            source=self.source,
            target=self.target,
            sample_rate_hz=file.sample_rate_hz,
            channels=file.channels,
            duration_s=duration_s,
            processing_s=0.0,
            clipped_samples=clipped,
            tracks=tracks,
        )


class _TrackProgress:
    """Progress on one track.

    Attributes:
        samples: Samples that are done.
        done_s: Duration that is done.
    """

    def __init__(self, progress: Callable[[float, float], None] | None) -> None:
        self.samples, self.done_s = 0, 0.0
        self._progress = progress

    def show(self, file: AudioFile) -> None:
        self.done_s = self.samples / file.sample_rate_hz
        if self._progress is not None:
            self._progress(self.done_s, max(self.samples, file.samples) / file.sample_rate_hz)


def check_keep(keep: Keep, target: str | Path = "", noise_target: str | Path | None = None) -> None:
    """Check what to keep of a signal, and where.

    Raises:
        ValueError: `keep` is unknown, or `noise_target` does not go with it.
    """
    if keep not in KEEPS:
        raise ValueError(f"keep must be one of {', '.join(KEEPS)}, got {keep!r}")
    if noise_target is not None:
        if keep == "noise":
            raise ValueError("noise_target needs keep='speech': with keep='noise' the noise goes to target")
        if os.path.realpath(noise_target) == os.path.realpath(target):
            raise ValueError("noise_target must not be the same file as target")
