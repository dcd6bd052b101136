"""Encode audio with FFmpeg's libraries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import float_to_int
from frcrn_accel.errors import AudioError
from frcrn_accel.files.bitrates import bit_rate_for, is_constant
from frcrn_accel.files.formats import ENCODERS, MP4, Target, codec_of
from frcrn_accel.files.lengths import fewest_samples
from frcrn_accel.files.reading import AudioFile

__all__ = ["Coding", "TrackEncoder", "coding_for"]

_BLOCK_SAMPLES = 1 << 14
# Encoders are given interleaved samples, which FFmpeg converts to planes where an encoder needs those.
_FLOAT, _SHORT, _LONG = "flt", "s16", "s32"
# Encoders that do not flush their delay: as many samples of silence push the last ones out.
_DELAYS = {"ac3": 256, "eac3": 256, "mp2": 481, "amr_nb": 40}
_INTEGERS = {"mp2", "amr_nb", "flac", "alac", "tta", "wavpack"}


@dataclass(frozen=True)
class Coding:
    """How a track is coded.

    Attributes:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
        rate_hz: Sample rate.
        layout: Places of the channels, by FFmpeg's name.
        bit_rate: Bits per second; None for codecs without one.
        bits: Bits of an integer sample; 0 for encoders that get floating point.
    """

    container: str
    codec: str
    rate_hz: int
    layout: str
    bit_rate: int | None
    bits: int


def coding_for(target: Target, like: AudioFile) -> Coding:
    """Return how to code a file or a track, with the bit rate of the source if the codec allows it."""
    codec, channels = target.encoding, len(target.sources)
    same = codec_of(like) == codec
    bit_rate = bit_rate_for(codec, target.rate_hz, channels, like.bit_rate_bps, same_codec=same)
    bits = 0
    if codec in _INTEGERS or codec.startswith("pcm_s"):
        bits = {"mp2": 16, "amr_nb": 16}.get(codec, target.bits)
        if codec.startswith("pcm_s"):
            bits = int(codec[5:7])
    return Coding(target.container, codec, target.rate_hz, target.layout or f"{channels} channels", bit_rate, bits)


class TrackEncoder:
    """Encodes an audio stream of an output container of PyAV.

    Args:
        container: The container; the stream is added to it.
        coding: How to code.

    Attributes:
        stream: The stream.
        samples: Samples per channel that were encoded so far, with the silence that some codecs need around them.
        packets: Packets returned so far.
        lead: Samples that the codec puts before the first one.
        clipped_samples: Samples beyond full scale that an integer encoding has clipped so far.
    """

    def __init__(self, container: Any, coding: Coding) -> None:
        from av.codec.context import Flags

        options = {}
        if coding.codec == "mp3" and coding.bit_rate and not is_constant("mp3", coding.bit_rate):
            options["abr"] = "1"
        if coding.bits == 24:
            options["bits_per_raw_sample"] = "24"
        name = ENCODERS.get(coding.codec, coding.codec)
        self.stream = container.add_stream(name, rate=coding.rate_hz, options=options)
        self.clipped_samples = 0
        self._coding = coding
        self._format = _FLOAT if not coding.bits else _SHORT if coding.bits == 16 else _LONG
        context = self.stream.codec_context
        context.layout = coding.layout
        context.format = self._encoder_format(context.codec)
        context.time_base = Fraction(1, coding.rate_hz)
        context.flags |= Flags.bitexact
        if coding.bit_rate:
            context.bit_rate = coding.bit_rate
        self.channels = context.layout.nb_channels
        self.samples = self.packets = self.lead = 0

    def _encoder_format(self, codec: Any) -> str:
        """Return the sample format of the encoder that holds our samples."""
        names = [sample_format.name for sample_format in codec.audio_formats or ()]
        wanted = [self._format, f"{self._format}p"]
        if self._coding.codec.startswith("pcm_f64"):
            wanted = ["dbl"]
        return next((name for name in wanted if name in names), names[0])

    def encode(self, block: NDArray[np.float32]) -> Iterator[Any]:
        """Encode a block, `float32 (channels, samples)`, and yield the packets that are ready."""
        import av

        for start in range(0, block.shape[1], _BLOCK_SAMPLES):
            part = block[:, start : start + _BLOCK_SAMPLES]
            interleaved = np.ascontiguousarray(self._samples_of(part).T).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(interleaved, format=self._format, layout=self._coding.layout)
            frame.sample_rate, frame.pts = self._coding.rate_hz, self.samples
            frame.time_base = Fraction(1, self._coding.rate_hz)
            self.samples += part.shape[1]
            yield from self._counted(self.stream.encode(frame))

    def finish(self) -> Iterator[Any]:
        """Yield the last packets."""
        codec = self._coding.codec
        if codec == "tta" and self.samples * self.channels == 1:
            raise AudioError("TTA cannot hold a single sample")  # FFmpeg's encoder would end this process
        delay = _DELAYS.get(codec, 0) if self.samples else 0
        if self.samples:
            delay = max(delay, fewest_samples(self._coding.container, codec) - self.samples)
        if delay:
            yield from self.encode(np.zeros((self.channels, delay), np.float32))
        if self.samples:  # an encoder without frames has nothing to flush
            yield from self._counted(self.stream.encode(None))

    def _counted(self, packets: Iterable[Any]) -> Iterator[Any]:
        for packet in packets:
            if not self.packets and packet.pts is not None:
                self.lead = round(-packet.pts * packet.time_base * self._coding.rate_hz)
            if self._is_padding():
                continue
            self.packets += bool(packet.size)
            yield packet

    def _is_padding(self) -> bool:
        """Return whether the next packet is MP3 that starts after the audio, for a container that would play it.

        LAME adds such a packet to about one length in 24, one in 12 at low rates. It has no duration, which FFmpeg's
        muxer of MP4 takes for that of a whole frame. It stays if all of the audio is in the first frame, since FFmpeg
        decodes nothing of a track whose only packet starts before the audio.
        """
        coding, frame_samples = self._coding, int(self.stream.codec_context.frame_size)
        if coding.codec != "mp3" or coding.container not in MP4 or self.samples <= frame_samples:
            return False
        return self.packets * frame_samples - self.lead >= self.samples

    def _samples_of(self, block: NDArray[np.float32]) -> NDArray[Any]:
        bits = self._coding.bits
        if not bits:
            return block
        self.clipped_samples += int(np.count_nonzero(np.abs(block) > 1.0))
        if bits == 16:
            return float_to_int(block, 16).astype(np.int16)
        return (float_to_int(block, bits) << (32 - bits)).astype(np.int32)
