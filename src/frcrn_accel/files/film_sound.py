"""Encode new sound for a film, in step with the picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import Resampler
from frcrn_accel.files.encode_ffmpeg import TrackEncoder, coding_for
from frcrn_accel.files.ffmpeg import fix_layout, open_input
from frcrn_accel.files.formats import MATROSKA, MP4, Target
from frcrn_accel.files.lengths import Surplus, coded_surplus, silence_before
from frcrn_accel.files.reading import AudioFile

__all__ = ["Sound", "Track", "sound_start_s"]

_MILLISECOND = Fraction(1, 1_000)


@dataclass(frozen=True)
class Sound:
    """New sound for a track.

    Attributes:
        like: The track as it is in the source.
        blocks: The sound, `float32 (channels, samples)` each, at the rate and with the length of the track.
    """

    like: AudioFile
    blocks: Iterator[NDArray[np.float32]]


def sound_start_s(path: Path, track: int) -> Fraction:
    """Return the time of the first sample that a player outputs for a track, in seconds on the time line of its film.

    Raises:
        FFmpegError: FFmpeg cannot open the film.
        OSError: The file cannot be read.
    """
    import av

    with path.open("rb") as file, open_input(file) as film:
        stream = film.streams.audio[track]
        fix_layout(stream.codec_context)
        for packet in film.demux(stream):
            with suppress(av.FFmpegError, EOFError):
                for frame in packet.decode():
                    if frame.pts is not None:
                        return Fraction(frame.pts * frame.time_base)
    return Fraction(0)


class Track:
    """Encodes new sound for a track of a film.

    Attributes:
        encoder: Its encoder.
        number: Number of the track in the source.

    Args:
        out: The output container of PyAV; a stream is added to it.
        plan: How to write the sound.
        sound: The sound.
        start_s: Where its first sample lies on the time line of the new film.
    """

    def __init__(self, out: Any, plan: Target, sound: Sound, start_s: Fraction) -> None:
        self.encoder = TrackEncoder(out, coding_for(plan, sound.like))
        self._plan, self._like, self._blocks = plan, sound.like, sound.blocks
        self._start_s = start_s
        self.number = sound.like.track
        self._given = self._taken = 0
        self._resampler = None
        if plan.rate_hz != sound.like.sample_rate_hz:
            self._resampler = Resampler(sound.like.sample_rate_hz, plan.rate_hz, len(plan.sources))
        self._ended = self._is_aligned = self._is_led = False

    def packets(self, time_s: Fraction | None) -> Iterator[Any]:
        """Yield the packets up to a time on the film's time line; None for all that are left."""
        rate_hz = self._plan.rate_hz
        while not self._ended and (time_s is None or self._start_s + Fraction(self._given, rate_hz) < time_s):
            block = next(self._blocks, None)
            if block is None:
                self._ended = True
                if self._resampler is not None:
                    wanted = round(self._taken * rate_hz / self._like.sample_rate_hz)
                    yield from self._encoded(self._resampler.finish()[:, : max(0, wanted - self._given)])
                yield from self._shifted(self.encoder.finish())
                return
            self._taken += block.shape[1]
            silence = np.zeros(block.shape[1], np.float32)
            block = np.stack([silence if row is None else block[row] for row in self._plan.sources])
            yield from self._encoded(block if self._resampler is None else self._resampler.push(block))

    def surplus(self) -> Surplus:
        """Return the extra samples that decoders output for the complete track."""
        found = coded_surplus(
            self._plan,
            self._given,
            encoded=self._given,
            packets=self.encoder.packets,
            frame_samples=int(self.encoder.stream.codec_context.frame_size),
            lead=self.encoder.lead,
        )
        if self._plan.container in MP4 and self._plan.encoding in ("aac", "mp3"):
            # FFmpeg makes players skip only what lies before the start of the film.
            played = min(self.encoder.lead, max(0, round(self._start_s * self._plan.rate_hz)))
            return replace(found, before=found.before + played)
        return found

    def _encoded(self, block: NDArray[np.float32]) -> Iterator[Any]:
        self._given += block.shape[1]
        if not self._is_led:
            self._is_led = True
            lead = silence_before(self._plan, self.encoder.stream.codec_context.frame_size)
            if self._plan.container == "avi":  # there all sound starts with the film
                lead += round(self._start_s * self._plan.rate_hz)
            if self._plan.encoding != "amr_nb":  # whose stated lead includes it
                self._start_s -= Fraction(lead, self._plan.rate_hz)
            yield from self._shifted(self.encoder.encode(np.zeros((len(block), lead), np.float32)))
        yield from self._shifted(self.encoder.encode(block))

    def _shifted(self, packets: Iterator[Any]) -> Iterator[Any]:
        for packet in packets:
            if not self._is_aligned:
                self._is_aligned = True
                self._align(-packet.pts * packet.time_base)
            shift = round(self._start_s / packet.time_base)
            packet.pts += shift
            packet.dts += shift
            yield packet

    def _align(self, lead_s: Fraction) -> None:
        """Move the start to where a player of Matroska puts it.

        Matroska counts milliseconds: a player adds the lead of the encoder to a rounded time, and rounds again.
        """
        if self._plan.container not in MATROSKA:
            return
        wanted = round(self._start_s / _MILLISECOND)
        first = math.floor(wanted - lead_s / _MILLISECOND)
        while math.floor(first + lead_s / _MILLISECOND + Fraction(1, 2)) < wanted:
            first += 1
        self._start_s = first * _MILLISECOND + lead_s
