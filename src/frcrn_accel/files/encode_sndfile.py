"""Encode audio with libsndfile."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel.audio import float_to_int
from frcrn_accel.errors import AudioError
from frcrn_accel.files.belongings import Belongings
from frcrn_accel.files.bitrates import OPUS_CHANNEL_BPS, bit_rate_for, vorbis_quality
from frcrn_accel.files.formats import Target, codec_of
from frcrn_accel.files.inserting import Inserting
from frcrn_accel.files.layouts import mask_of, to_vorbis
from frcrn_accel.files.lengths import Surplus, silence_behind, sndfile_surplus
from frcrn_accel.files.reading import AudioFile
from frcrn_accel.files.riff import (
    SIZE_LIMIT_BYTES,
    caf_front,
    finish_aiff,
    finish_w64,
    finish_wav,
    w64_front,
    wav_front,
)
from frcrn_accel.files.tags import flac_picture, vorbis_comments
from frcrn_accel.ogg import OggPages

__all__ = ["SndfileEncoder"]

# Encodings of floating-point samples or of their spectrum. All others get integers, which are clipped.
_FLOATING = {"FLOAT", "DOUBLE", "VORBIS", "OPUS"}
_BITS = {
    "PCM_S8": 8,
    "PCM_U8": 8,
    "PCM_16": 16,
    "PCM_24": 24,
    "PCM_32": 32,
    "ALAC_16": 16,
    "ALAC_20": 20,
    "ALAC_24": 24,
    "ALAC_32": 32,
}
_BITS |= {"DWVW_12": 12, "DWVW_16": 16, "DWVW_24": 24, "DPCM_8": 8, "DPCM_16": 16}
# The decoders of G.72x overshoot, and wrap around: a quarter of the samples of noise that is clipped at 1.0.
_CEILINGS = dict.fromkeys(("G721_32", "G723_24", "G723_40"), 0.85)
_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8, "ULAW": 1, "ALAW": 1}
_BLOCK_SAMPLES = 1 << 14  # libvorbis crashes on much larger ones
# Sizes in these files have 32 bits, in VOC 24. libsndfile cuts larger ones without an error.
_LIMITS_BYTES = {"AIFF": SIZE_LIMIT_BYTES, "SVX": SIZE_LIMIT_BYTES, "VOC": 1 << 24}
_MAY_BE_LONG_BYTES = 1 << 30  # the length in a header may be an estimate
_W64_HEAD_BYTES = 40
_STREAMINFO_END = 42  # "fLaC", the block's head and its 34 bytes
_DESCRIPTION_END = 52  # head of a CAF file, and its first chunk
_MAT5_TEXT_BYTES = 116
_FLAC_COMMENTS, _FLAC_PICTURE, _FLAC_PADDING = 4, 6, 1


class SndfileEncoder:
    """Writes a file with libsndfile.

    Args:
        file: The empty file, open for reading and writing.
        target: How to write it.
        like: The source.
        belongings: What accompanies the audio.

    Attributes:
        clipped_samples: Samples beyond full scale that an integer encoding has clipped so far.
    """

    def __init__(self, file: BinaryIO, target: Target, like: AudioFile, belongings: Belongings) -> None:
        self.clipped_samples = 0
        self._file, self._target, self._belongings = file, target, belongings
        self._channels, self._samples = len(target.sources), 0
        self._kept = np.zeros((self._channels, 0), np.float32)
        self._bits = None if target.encoding in _FLOATING else _BITS.get(target.encoding, 16)
        self._format = "WAV" if target.container == "RF64" else target.container
        if self._is_extensible():
            self._format = "WAVEX"
        self._ceiling = _CEILINGS.get(target.encoding, 1.0)
        self._order = list(to_vorbis(target.layout)) if target.encoding in ("VORBIS", "OPUS") else []
        self._sink = self._open_sink(like)
        pages = (
            OggPages(self._sink, vorbis_comments(belongings.tags, belongings.chapters, belongings.pictures))
            if self._format == "OGG"
            else None
        )
        self._sound = soundfile.SoundFile(
            pages or self._sink,
            "w",
            target.rate_hz,
            self._channels,
            target.encoding,
            format=self._format,
            compression_level=self._compression(like),
        )

    def write(self, block: NDArray[np.float32]) -> None:
        """Append a block, `float32 (channels, samples)`.

        Raises:
            AudioError: The file is larger than the format allows.
        """
        # In blocks of one size, since the output of libvorbis depends on it.
        self._samples += block.shape[1]
        self._kept = np.concatenate([self._kept, block], axis=1)
        whole = self._kept.shape[1] // _BLOCK_SAMPLES * _BLOCK_SAMPLES
        for start in range(0, whole, _BLOCK_SAMPLES):
            self._write(self._kept[:, start : start + _BLOCK_SAMPLES])
        self._kept = self._kept[:, whole:]
        self._check_size()

    def _write(self, block: NDArray[np.float32]) -> None:
        try:
            if self._bits is None:
                self._sound.write(block[self._order].T if self._order else block.T)
                return
            # libsndfile reads full scale as 1.0, but writes 1.0 as one integer less. Integers are therefore made
            # here, in the upper bits of an int32, so that unchanged samples are written bit for bit.
            self.clipped_samples += int(np.count_nonzero(np.abs(block) > self._ceiling))
            integers = float_to_int(np.clip(block, -self._ceiling, self._ceiling), self._bits)
            if self._target.encoding not in _BITS:
                # The smallest integer has no positive counterpart: libsndfile's mu-law wraps it around.
                integers = np.maximum(integers, 1 - (1 << (self._bits - 1)))
            self._sound.write((integers << (32 - self._bits)).T.astype(np.int32))
        finally:
            self._raise_error()

    def close(self) -> None:
        """Complete the file."""
        behind = silence_behind(self._target, self._samples)
        if behind:
            self._kept = np.concatenate([self._kept, np.zeros((self._channels, behind), np.float32)], axis=1)
        if self._kept.shape[1]:
            self._write(self._kept)
            self._check_size()
        self._sound.close()
        self._raise_error()
        mask = mask_of(self._target.layout)
        if self._format in ("WAV", "WAVEX"):
            size = _SAMPLE_BYTES.get(self._target.encoding)
            finish_wav(
                self._file,
                self._belongings,
                samples=self._samples,
                data_bytes=None if size is None else size * self._channels * self._samples,
                mask=mask,
                rf64=self._target.container == "RF64",
            )
        elif self._format == "AIFF":
            finish_aiff(self._file, self._belongings, mask if self._channels > 2 else 0)
        elif self._format == "W64":
            finish_w64(self._file)
        elif self._format == "FLAC":
            self._hide_own_comments()
        elif self._format == "MAT5":
            self._file.seek(0)
            text = re.sub(
                rb"\d{4}(-\d\d){2} \d\d(:\d\d){2}", b"1970-01-01 00:00:00", self._file.read(_MAT5_TEXT_BYTES)
            )
            self._file.seek(0)
            self._file.write(text)

    def surplus(self) -> Surplus:
        """Return the extra samples that decoders output for the complete file."""
        return sndfile_surplus(self._target, self._samples, self._file)

    def abort(self) -> None:
        """Stop writing; the caller deletes the file."""
        with suppress(Exception):  # the error that led here is the one to report
            self._sound.close()

    def _check_size(self) -> None:
        limit_bytes = _LIMITS_BYTES.get(self._format)
        if limit_bytes is not None and self._file.tell() >= limit_bytes:
            raise AudioError(f"{self._format} holds up to {limit_bytes >> 20:,} MiB: write a .wav or .flac instead")

    def _raise_error(self) -> None:
        if self._sink.error is not None:
            raise self._sink.error

    def _is_extensible(self) -> bool:
        """Return whether a WAV file states the places of its channels, which it can with some encodings only."""
        if self._format not in ("WAV", "WAVEX") or self._target.encoding not in _SAMPLE_BYTES:
            return False
        return self._format == "WAVEX" or (self._channels > 2 and mask_of(self._target.layout) != 0)

    def _compression(self, like: AudioFile) -> float | None:
        """Return the compression, 0 to 1, that gives the bit rate of the source; None for the usual one."""
        encoding, channels = self._target.encoding, self._channels
        if encoding == "VORBIS":
            if codec_of(like) != "vorbis" or not like.bit_rate_bps:
                return None
            return 1 - vorbis_quality(like.bit_rate_bps, self._target.rate_hz, channels)
        if encoding != "OPUS":
            return None
        same = codec_of(like) == "opus"
        wanted = bit_rate_for("opus", self._target.rate_hz, channels, like.bit_rate_bps, same_codec=same)
        low, high = OPUS_CHANNEL_BPS
        return 1 - (wanted / channels - low) / (high - low) if wanted else None

    def _open_sink(self, like: AudioFile) -> Inserting:
        """Return the file that libsndfile writes to."""
        mask = mask_of(self._target.layout)
        if self._format == "FLAC":
            return Inserting(self._file, _STREAMINFO_END, self._flac_blocks(mask))
        if self._format == "CAF":
            return Inserting(
                self._file, _DESCRIPTION_END, caf_front(self._belongings, mask if self._channels > 2 else 0)
            )
        if self._format in ("WAV", "WAVEX"):
            expected = like.samples * self._channels * _SAMPLE_BYTES.get(self._target.encoding, 1)
            may_be_long = not like.samples or expected >= _MAY_BE_LONG_BYTES or self._target.container == "RF64"
            return Inserting(self._file, 12, wav_front(self._belongings, may_be_long=may_be_long))
        if self._format == "W64":
            return Inserting(self._file, _W64_HEAD_BYTES, w64_front(self._belongings))
        return Inserting(self._file)

    def _flac_blocks(self, mask: int) -> bytes:
        """Return the metadata blocks that follow the first."""
        tags = dict(self._belongings.tags)
        if mask and self._channels > 2:
            # Decoders differ on whether FLAC's own layouts of five and six channels have side or back channels.
            tags["WAVEFORMATEXTENSIBLE_CHANNEL_MASK"] = f"0x{mask:x}"
        comments = vorbis_comments(
            tags, self._belongings.chapters, vendor=f"libsndfile {soundfile.__libsndfile_version__}"
        )
        blocks = [(_FLAC_COMMENTS, comments)]
        blocks += [(_FLAC_PICTURE, flac_picture(picture)) for picture in self._belongings.pictures]
        return b"".join(bytes([kind]) + len(data).to_bytes(3, "big") + data for kind, data in blocks)

    def _hide_own_comments(self) -> None:
        """Turn libsndfile's block of comments into padding, since a file may have one only."""
        position = _STREAMINFO_END + len(self._flac_blocks(mask_of(self._target.layout)))
        while True:
            self._file.seek(position)
            head = self._file.read(4)
            if len(head) < 4:
                return
            size = int.from_bytes(head[1:], "big")
            if head[0] & 0x7F == _FLAC_COMMENTS:
                self._file.seek(position)
                self._file.write(bytes([head[0] & 0x80 | _FLAC_PADDING]) + head[1:] + bytes(size))
            if head[0] & 0x80:
                return
            position += 4 + size
