"""Compute how much longer than its audio a new file plays, for formats that cannot state where it starts and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from frcrn_accel.files.ffmpeg import open_input
from frcrn_accel.files.formats import MATROSKA, MP4, Target

__all__ = ["Surplus", "coded_surplus", "fewest_samples", "silence_before", "silence_behind", "sndfile_surplus"]

# Containers that do not state where the audio starts and ends, and those that only state where it starts. The others
# state both.
_STATES_NOTHING = ("adts", "ac3", "eac3", "mp2", "amr", "mpegts", "flv")
_STATES_START = (*MP4, *MATROSKA, "asf")
# Codecs with a delay and frames of one size. FFmpeg passes the end of the audio to the muxer for some of them only.
_FRAMED = ("aac", "ac3", "eac3", "mp2", "amr_nb", "opus", "wmav1", "wmav2")
_OPUS_HZ = 48_000  # the rate that it is decoded at

# Samples per channel in a block of libsndfile's encodings, for the decoders that do not stop within one.
_NMS = ("NMS_ADPCM_16", "NMS_ADPCM_24", "NMS_ADPCM_32")
_BLOCK_SAMPLES = {"G721_32": 120, "G723_24": 120, "G723_40": 120, **dict.fromkeys(_NMS, 160)}
_GSM_SAMPLES, _GSM_PAIR_SAMPLES = 160, 320
_AIFF_IMA_SAMPLES = 64
_PACKET_SAMPLES = {
    ("SDS", "PCM_S8"): 60,
    ("SDS", "PCM_16"): 40,
    ("SDS", "PCM_24"): 30,
    ("PAF", "PCM_24"): 10,
}
_WAV_BLOCK_BYTES = ((12_000, 256), (23_000, 512), (44_000, 1_024))
_MOST_WAV_BLOCK_BYTES = 2_048
_BYTE_CODES = ("PCM_S8", "PCM_U8", "ULAW", "ALAW")
_STATES_LENGTH_OF_BLOCKS = ("WAV", "WAVEX", "RF64")
_LONGEST_OGG_PAGE_BYTES = 65_307


# Of fewer samples FFmpeg finds no audio: it does not know frames without a container by one, or two (three AC-3), and
# it decodes nothing of MP4 where the audio starts within the only packet.
_FEWEST = {
    ("adts", "aac"): 1_025,
    ("ac3", "ac3"): 3 * 1_536 + 1,
    ("eac3", "eac3"): 3 * 1_536 + 1,
    ("mov", "alac"): 2,
    **{(muxer, "opus"): 649 for muxer in MP4},
    **{(muxer, "amr_nb"): 111 for muxer in MP4},
}
_FEWEST_OF_MP2 = 1_153
# FFmpeg states a later start of AMR than the true one.
_AMR_LEAD, _AMR_STATED_LEAD = 39, 50


@dataclass(frozen=True)
class Surplus:
    """Samples that a decoder outputs before and after the audio.

    Attributes:
        before: Samples before it.
        after: Samples after it.
        rate_hz: Rate that they are counted at: that of decoders.
        reason: Why they are there.
    """

    before: int
    after: int
    rate_hz: int
    reason: str

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return self.before != 0 or self.after != 0

    def __str__(self) -> str:
        """Return the text of a warning, on one line."""
        total = self.before + self.after
        text = (
            f"{self.reason}: {_count(total)} more than the source at {self.rate_hz:,} Hz"
            f" ({1_000 * total / self.rate_hz:.1f} ms)"
        )
        return f"{text}, {self.before:,} of them before the audio" if self.before else text


def silence_before(target: Target, frame_samples: int) -> int:
    """Return how many samples of silence to encode before the audio, for decoders that drop as many.

    Args:
        target: How the file is written.
        frame_samples: Samples in each packet.
    """
    if target.encoding.startswith("wma"):  # its decoders drop the first block of the codec
        return frame_samples
    return _AMR_STATED_LEAD - _AMR_LEAD if target.encoding == "amr_nb" and target.container in MP4 else 0


def silence_behind(target: Target, samples: int) -> int:
    """Return how many samples of silence to write behind the audio, for libsndfile to write, and find, all of it.

    It leaves out the last packet unless that is full, and reads nothing of a file of a single one.
    """
    packet = _PACKET_SAMPLES.get((target.container, target.encoding), 0)
    return max(-samples % packet, 2 * packet - samples) if packet and samples else 0


def fewest_samples(container: str, codec: str) -> int:
    """Return how many samples to encode at least, with silence behind the audio, for FFmpeg to find any."""
    return _FEWEST_OF_MP2 if codec == "mp2" else _FEWEST.get((container, codec), 0)


def coded_surplus(
    target: Target, samples: int, *, encoded: int, packets: int, frame_samples: int, lead: int
) -> Surplus:
    """Return the extra samples that decoders output for a file written by FFmpeg.

    Args:
        target: How the file was written.
        samples: Samples per channel of the audio.
        encoded: The same, with silence that was added.
        packets: Packets that a decoder turns into samples.
        frame_samples: Samples in each.
        lead: Samples before the audio in the first of them.
    """
    codec, container = target.encoding, target.container
    scale = _OPUS_HZ // target.rate_hz if codec == "opus" else 1
    rate_hz = target.rate_hz * scale
    reason = f"the format does not state where {codec} ends"
    if not packets or not samples:
        return Surplus(0, 0, rate_hz, reason)
    if container == "asf":
        lead = frame_samples
    elif codec == "amr_nb":
        lead = _AMR_STATED_LEAD if container in MP4 else _AMR_LEAD
    rest = (packets * frame_samples - lead - samples) * scale
    if container in _STATES_NOTHING:
        return Surplus(lead * scale, rest, rate_hz, f"the format does not state where {codec} starts and ends")
    if container in MATROSKA and codec in ("opus", "mp3"):
        # FFmpeg does not cut both ends of one packet, and the first has the lead in it.
        within_first = max(0, rest - (packets - 1) * frame_samples * scale) if lead < frame_samples else 0
        return Surplus(0, within_first, rate_hz, f"FFmpeg does not cut both ends of a packet of {codec}")
    if container in MP4 and codec == "mp3":  # a packet that starts after the audio is played to its end
        return Surplus(0, rest if rest >= frame_samples else 0, rate_hz, reason)
    if codec not in _FRAMED:
        return Surplus(0, encoded - samples if codec != "mp3" else 0, rate_hz, reason)
    states_end = container not in _STATES_START or (container in MP4 and codec == "aac")
    return Surplus(0, 0 if states_end else rest, rate_hz, reason)


def sndfile_surplus(target: Target, samples: int, file: BinaryIO) -> Surplus:
    """Return the extra samples that decoders output for a file written by libsndfile.

    Args:
        target: How the file was written.
        samples: Samples per channel of the audio.
        file: The complete file.
    """
    encoding, rate_hz = target.encoding, target.rate_hz
    if encoding == "VORBIS":
        after = _vorbis_surplus(samples, file) if samples else 0
        return Surplus(0, after, rate_hz, "FFmpeg does not cut Vorbis of a single page")
    block = _block_samples(target)
    if block:
        reason = f"{encoding} is stored in whole blocks, and " + (
            "players tend to ignore the length beside them"
            if target.container in _STATES_LENGTH_OF_BLOCKS
            else "the format does not say where the audio ends in the last"
        )
        return Surplus(0, silence_behind(target, samples) or -samples % block, rate_hz, reason)
    return Surplus(
        0, _byte_surplus(target, samples), rate_hz, "players take the byte that ends the audio for a sample"
    )


def _block_samples(target: Target) -> int:
    """Return the samples per channel in a block; 0 if there are no blocks."""
    encoding, container = target.encoding, target.container
    if encoding == "GSM610":
        return _GSM_SAMPLES if container == "AIFF" else _GSM_PAIR_SAMPLES
    if encoding not in ("IMA_ADPCM", "MS_ADPCM"):
        return _BLOCK_SAMPLES.get(encoding) or _PACKET_SAMPLES.get((container, encoding), 0)
    if container == "AIFF":
        return _AIFF_IMA_SAMPLES
    channels = len(target.sources)
    flow = target.rate_hz * channels
    size = next((size for limit, size in _WAV_BLOCK_BYTES if flow < limit), _MOST_WAV_BLOCK_BYTES)
    if encoding == "IMA_ADPCM":  # a head with the first sample, and half a byte for each of the others
        return 2 * (size - 4 * channels) // channels + 1
    return 2 * (size - 7 * channels) // channels + 2


def _byte_surplus(target: Target, samples: int) -> int:
    """Return 1 if a byte behind the audio is read as a sample, which takes samples of a byte and one channel."""
    if not samples or len(target.sources) != 1 or target.encoding not in _BYTE_CODES:
        return 0
    if target.container == "AIFF":  # chunks have an even size
        return samples % 2
    return int(target.container == "VOC" and target.encoding in ("ULAW", "ALAW"))


def _vorbis_surplus(samples: int, file: BinaryIO) -> int:
    """Return how many samples too many FFmpeg decodes: it cuts the last page only if there is one before it."""
    file.seek(0)
    start = file.read(2 * _LONGEST_OGG_PAGE_BYTES + 1)
    if len(start) > 2 * _LONGEST_OGG_PAGE_BYTES:
        return 0
    file.seek(0)
    with open_input(file) as container:
        decoded = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
    return max(0, int(decoded) - samples)


def _count(samples: int) -> str:
    return f"{samples:,} sample{'' if samples == 1 else 's'}"
