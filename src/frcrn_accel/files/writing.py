"""Write audio files atomically: a file is either complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.atomic import replacing
from frcrn_accel.audio import Resampler
from frcrn_accel.errors import AudioError, OutputExistsError
from frcrn_accel.files.encode_sndfile import SndfileEncoder
from frcrn_accel.files.formats import Target, plan_target
from frcrn_accel.files.holding import keep
from frcrn_accel.files.lengths import Surplus
from frcrn_accel.files.reading import AudioFile, open_audio
from frcrn_accel.files.reasons import reason_of
from frcrn_accel.notices import notify

__all__ = ["AudioWriter", "create_audio"]


class _Encoder(Protocol):
    @property
    def clipped_samples(self) -> int: ...

    def write(self, block: NDArray[np.float32]) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...

    def surplus(self) -> Surplus: ...


class AudioWriter:
    """Writes blocks to an audio file."""

    def __init__(self, encoder: _Encoder, target: Target, like: AudioFile) -> None:
        self._encoder, self._target = encoder, target
        self._from_hz, self._to_hz = like.sample_rate_hz, target.rate_hz
        self._moved = target.sources != tuple(range(like.channels))
        self._resampler = (
            Resampler(self._from_hz, self._to_hz, len(target.sources)) if self._from_hz != self._to_hz else None
        )
        self._taken = self._written = 0

    @property
    def clipped_samples(self) -> int:
        """Number of samples beyond full scale that an integer encoding has clipped so far."""
        return self._encoder.clipped_samples

    def write(self, block: NDArray[np.float32]) -> None:
        """Append a block, `float32 (channels, samples)`."""
        if self._moved:
            silence = np.zeros(block.shape[1], np.float32)
            block = np.stack([silence if row is None else block[row] for row in self._target.sources])
        self._taken += block.shape[1]
        self._pass_on(block if self._resampler is None else self._resampler.push(block))

    def _finish(self) -> None:
        if self._resampler is not None:
            wanted = round(self._taken * self._to_hz / self._from_hz)
            self._pass_on(self._resampler.finish()[:, : max(0, wanted - self._written)])
        self._encoder.close()

    def _pass_on(self, block: NDArray[np.float32]) -> None:
        self._written += block.shape[1]
        self._encoder.write(block)


@contextmanager
def create_audio(path: Path, like: AudioFile, *, overwrite: bool) -> Iterator[AudioWriter]:
    """Create an audio file. It appears under its name when the block ends without an error.

    Args:
        path: The file to write; its suffix selects the format.
        like: Source of rate, channels, belongings and, if the format supports it, encoding and bit rate. What the
            file cannot hold is named in an `AudioWarning`.
        overwrite: Replace an existing file.

    Raises:
        AudioError: The format is unknown or cannot store this audio, or the folder is not writable.
        OutputExistsError: `path` exists and `overwrite` is false.
    """
    target = plan_target(path, like)
    belongings, left_out = keep(like.belongings, target)
    notes = list(target.notes)
    if left_out:
        notes.append(f"left out, the format cannot hold it: {', '.join(left_out)}")
    with (
        _writing(path),
        replacing(path, overwrite=overwrite, like=like.path) as temporary,
        temporary.open("w+b") as file,
    ):
        encoder: _Encoder
        if target.by_ffmpeg:
            from frcrn_accel.files.encode_file import FfmpegEncoder

            encoder = FfmpegEncoder(file, target, like, belongings)
        else:
            encoder = SndfileEncoder(file, target, like, belongings)
        for note in notes:
            notify(f"{str(path)!r}: {note}")
        writer = AudioWriter(encoder, target, like)
        try:
            yield writer
            writer._finish()
            if not writer._written and not (file.seek(0, os.SEEK_END) and _can_be_read(temporary)):
                raise AudioError(f"{str(path)!r} cannot be written: there are no samples, and the format needs some")
            surplus = encoder.surplus()
        except BaseException:
            encoder.abort()
            raise
        if surplus:
            notify(f"{str(path)!r}: {surplus}")


def _can_be_read(path: Path) -> bool:
    """Return whether a file without samples can be read."""
    try:
        return not any(block.size for block in open_audio(path).blocks())
    except AudioError:
        return False


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OutputExistsError, AudioError):
        raise
    except Exception as error:
        import av  # here, since files of libsndfile do not need it

        if not isinstance(error, (OSError, soundfile.SoundFileError, av.FFmpegError)):
            raise
        raise AudioError(f"{str(path)!r} cannot be written: {reason_of(error)}") from error
