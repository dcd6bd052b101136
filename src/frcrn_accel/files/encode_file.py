"""Write audio files, and what accompanies the audio, with FFmpeg's libraries."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.files.belongings import Belongings
from frcrn_accel.files.encode_ffmpeg import Coding, TrackEncoder, coding_for
from frcrn_accel.files.formats import MP4, Target
from frcrn_accel.files.inserting import Inserting
from frcrn_accel.files.lame import set_padding
from frcrn_accel.files.lengths import Surplus, coded_surplus, silence_before
from frcrn_accel.files.mp4 import add_items, is_item
from frcrn_accel.files.reading import AudioFile
from frcrn_accel.files.tags import ape_tag, id3_tag, vorbis_comments
from frcrn_accel.ogg import OggPages

__all__ = ["FfmpegEncoder"]

_ID3 = ("mp3", "mp2", "adts")
_OGG = ("ogg", "opus")
_APE = ("wv", "tta")
_WITH_ITEMS = ("ipod", "mp4")
# No time stamps, no random numbers, and none of FFmpeg's own tags.
_OPTIONS = {"fflags": "+bitexact"}
_ASF_BYTES, _ASF_HEAD_BYTES, _ASF_FRAME_BYTES = 8_000, 40, 20
_MILLISECOND = Fraction(1, 1000)


def _muxer_options(muxer: str, coding: Coding) -> dict[str, str]:
    """Return options of a muxer: lengths are exact to the sample, and tags are not written twice."""
    if muxer == "mp3":
        return {"id3v2_version": "0"}
    if muxer == "asf" and coding.bit_rate:  # frames are not split, and packets of the usual size are a third padding
        frame_samples = 512 if coding.rate_hz <= 16_000 else 1_024 if coding.rate_hz <= 22_050 else 2_048
        frame_bytes = coding.bit_rate * frame_samples // coding.rate_hz // 8
        return {
            "packet_size": str(_ASF_HEAD_BYTES + max(1, _ASF_BYTES // frame_bytes) * (frame_bytes + _ASF_FRAME_BYTES))
        }
    if muxer not in MP4:
        return {}
    return {"movie_timescale": str(coding.rate_hz), **({"movflags": "use_metadata_tags"} if muxer == "mov" else {})}


class FfmpegEncoder:
    """Writes a file with one audio stream.

    Args:
        file: The empty file, open for reading and writing.
        target: How to write it.
        like: The source.
        belongings: What accompanies the audio.
    """

    def __init__(self, file: BinaryIO, target: Target, like: AudioFile, belongings: Belongings) -> None:
        import av

        self._file, self._target, self._belongings = file, target, belongings
        muxer = target.container
        front = id3_tag(belongings) if muxer in _ID3 else b""
        self._sink, self._start = Inserting(file, 0, front), len(front)
        sink: Any = self._sink
        if muxer in _OGG:
            sink = OggPages(self._sink, vorbis_comments(belongings.tags, belongings.chapters, belongings.pictures))
        coding = coding_for(target, like)
        self._container = av.open(
            sink, "w", format=muxer, container_options={**_OPTIONS, **_muxer_options(muxer, coding)}
        )
        self._track = TrackEncoder(self._container, coding)
        self._describe(muxer)
        self._samples, self._is_led = 0, False

    @property
    def clipped_samples(self) -> int:
        """Samples beyond full scale that an integer encoding has clipped so far."""
        return self._track.clipped_samples

    def write(self, block: NDArray[np.float32]) -> None:
        """Append a block, `float32 (channels, samples)`."""
        if not self._is_led:
            self._is_led = True
            self._container.start_encoding()  # opens the encoder, which sets its frame size
            self._encode(np.zeros((len(block), silence_before(self._target, self._frame_samples)), np.float32))
        self._samples += block.shape[1]
        self._encode(block)

    def _encode(self, block: NDArray[np.float32]) -> None:
        for packet in self._track.encode(block):
            self._container.mux(packet)
        self._raise_error()

    @property
    def _frame_samples(self) -> int:
        return int(self._track.stream.codec_context.frame_size)

    def close(self) -> None:
        """Complete the file."""
        self._container.start_encoding()  # a file without samples has a header, too
        for packet in self._track.finish():
            self._container.mux(packet)
        self._container.close()
        self._raise_error()
        if self._target.container == "mp3":
            set_padding(self._file, self._start, self._track.samples)
        elif self._target.container in _APE:
            self._file.seek(0, 2)
            self._file.write(ape_tag(self._belongings.tags, self._belongings.pictures))
        elif self._target.container in _WITH_ITEMS:
            extra = {name: text for name, text in self._belongings.tags.items() if not is_item(name, text)}
            add_items(self._file, extra, self._belongings.pictures)

    def surplus(self) -> Surplus:
        """Return the extra samples that decoders output for the complete file."""
        return coded_surplus(
            self._target,
            self._samples,
            encoded=self._track.samples,
            packets=self._track.packets,
            frame_samples=self._frame_samples,
            lead=self._track.lead,
        )

    def abort(self) -> None:
        """Stop writing; the caller deletes the file."""
        with suppress(Exception):  # the error that led here is the one to report
            self._container.close()

    def _raise_error(self) -> None:
        if self._sink.error is not None:
            raise self._sink.error

    def _describe(self, muxer: str) -> None:
        """Give FFmpeg the belongings that its muxer writes."""
        if muxer in (*_ID3, *_OGG, *_APE):
            return
        for name, text in self._belongings.tags.items():
            if muxer not in _WITH_ITEMS or is_item(name, text):
                self._container.metadata[name] = text
        if self._belongings.chapters:
            self._container.set_chapters(
                [
                    {
                        "id": number,
                        "start": round(chapter.start_s / _MILLISECOND),
                        "end": round(chapter.end_s / _MILLISECOND),
                        "time_base": _MILLISECOND,
                        "metadata": {"title": chapter.title},
                    }
                    for number, chapter in enumerate(self._belongings.chapters)
                ]
            )
        if muxer == "matroska":
            for number, picture in enumerate(self._belongings.pictures):
                name = f"{'cover' if not number else f'picture{number}'}.{picture.mime.rpartition('/')[2]}"
                stream = self._container.add_attachment(name, picture.mime, picture.data)
                if picture.description:
                    stream.metadata["title"] = picture.description
