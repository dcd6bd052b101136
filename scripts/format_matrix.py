"""Write the table of formats into docs/formats.md, between `<!-- formats -->` and `<!-- end -->`.

    python scripts/format_matrix.py [--check]

Each row is measured: audio with tags, a picture and chapters is written twice and decoded with FFmpeg (by libsndfile
where FFmpeg does not know the format). `--check` changes nothing; the exit code is 1 if the table would change.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import warnings
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel import AudioError
from frcrn_accel.errors import AudioWarning
from frcrn_accel.files import AudioFile, create_audio, open_audio
from frcrn_accel.files.belongings import Belongings, Chapter, Picture, read_belongings
from frcrn_accel.files.formats import plan_target

PAGE = Path(__file__).parents[1] / "docs" / "formats.md"
SECTION = re.compile(r"(?P<head><!-- formats -->\n).*?(?P<tail><!-- end -->)", re.DOTALL)
SAID = re.compile(r": ([\d,]+) samples? more than the source")
SAMPLES = 30_011
PICTURE = b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(100)
BELONGINGS = Belongings(
    MappingProxyType({"title": "Käse", "X-FREE": "ü"}),
    (Picture(PICTURE, "image/jpeg"),),
    (Chapter(Fraction(0), Fraction(1, 4), "one"), Chapter(Fraction(1, 4), Fraction(1, 2), "two")),
)
# Suffixes, encoding of the source, and the rate that is tried.
ROWS: tuple[tuple[str, str, int], ...] = (
    (".wav .wave .bwf", "PCM_16", 44_100),
    (".wav", "PCM_24", 44_100),
    (".wav", "FLOAT", 44_100),
    (".wav", "ULAW", 8_000),
    (".wav", "IMA_ADPCM", 44_100),
    (".wav", "MS_ADPCM", 44_100),
    (".wav", "GSM610", 8_000),
    (".rf64", "PCM_16", 44_100),
    (".w64", "PCM_16", 44_100),
    (".aiff .aif .aifc", "PCM_16", 44_100),
    (".caf", "PCM_16", 44_100),
    (".caf", "ALAC_16", 44_100),
    (".flac", "PCM_16", 44_100),
    (".ogg .oga", "VORBIS", 44_100),
    (".ogg .oga", "flac", 44_100),
    (".opus .ogg .oga", "opus", 48_000),
    (".mp3", "mp3", 44_100),
    (".mp2 .m2a .mpa", "mp2", 44_100),
    (".m4a .m4b", "aac", 44_100),
    (".m4a .m4b", "alac", 44_100),
    (".mp4", "aac", 44_100),
    (".mov", "aac", 44_100),
    (".mov", "pcm_s16le", 44_100),
    (".3gp", "aac", 44_100),
    (".3gp", "amr_nb", 8_000),
    (".aac", "aac", 44_100),
    (".mka .mkv", "opus", 48_000),
    (".mka .mkv", "flac", 44_100),
    (".mka .mkv", "aac", 44_100),
    (".mka .mkv", "mp3", 44_100),
    (".webm .weba", "opus", 48_000),
    (".wma .asf", "wmav2", 44_100),
    (".amr", "amr_nb", 8_000),
    (".ac3", "ac3", 48_000),
    (".eac3 .ec3", "eac3", 48_000),
    (".wv", "wavpack", 44_100),
    (".tta", "tta", 44_100),
    (".au .snd", "PCM_16", 44_100),
    (".voc", "PCM_16", 44_100),
    (".nist .sph", "PCM_16", 16_000),
    (".ircam .sf", "PCM_16", 44_100),
    (".svx .iff", "PCM_16", 44_100),
    (".paf", "PCM_16", 44_100),
    (".pvf", "PCM_16", 44_100),
    (".avr", "PCM_16", 44_100),
    (".mat4", "PCM_16", 44_100),
    (".mat5 .mat", "PCM_16", 44_100),
    (".htk", "PCM_16", 16_000),
    (".sds", "PCM_16", 44_100),
    (".mpc2k", "PCM_16", 44_100),
    (".wve", "ALAW", 8_000),
    (".xi", "DPCM_16", 44_100),
)
HEAD = (
    "suffixes",
    "encoding",
    "read back",
    "tags",
    "pictures",
    "chapters",
    "maximum channels",
    "samples",
    "warning",
    "lag",
    "same bytes",
)


def noise(samples: int, channels: int) -> NDArray[np.float32]:
    """Make noise that every codec keeps."""
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal((channels, samples)))
    spectrum[:, spectrum.shape[1] // 4 :] = 0
    low = np.fft.irfft(spectrum, samples)
    return np.asarray(0.1 * low / low.std(), np.float32)


def write(path: Path, subtype: str, rate_hz: int, channels: int, audio: NDArray[np.float32]) -> str:
    """Write a file; what is left out is measured, and not printed. Return what is said about the length."""
    like = AudioFile(Path(f"source{path.suffix}"), rate_hz, channels, 0, "", subtype, belongings=BELONGINGS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioWarning)
        with create_audio(path, like, overwrite=True) as writer:
            writer.write(audio)
    said = [found for text in caught if (found := SAID.search(str(text.message)))]
    return f"+{said[0][1]}" if said else ""


def most_channels(path: Path, subtype: str, rate_hz: int) -> int:
    """Return how many channels a format holds in the encoding that it uses for one, of those that are tried."""
    encoding = planned(path, subtype, rate_hz, 1)
    for channels in (64, 32, 16, 8, 6, 4, 2):
        try:
            write(path, subtype, rate_hz, channels, noise(480, channels))
        except AudioError:
            continue
        if planned(path, subtype, rate_hz, channels) == encoding:
            return channels
    return 1


def planned(path: Path, subtype: str, rate_hz: int, channels: int) -> str:
    """Return the encoding of a new file, in lower case: FFmpeg's name of a codec or libsndfile's."""
    return plan_target(path, AudioFile(path, rate_hz, channels, 0, "", subtype)).encoding.lower()


def decode(path: Path) -> tuple[NDArray[np.float32], int | None]:
    """Decode the first channel; return the number of samples that the container states, too."""
    if path.suffix == ".caf":  # FFmpeg cuts ALAC in CAF short
        return soundfile.read(path, dtype="float32", always_2d=True)[0][:, 0], None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            mono = av.AudioResampler("fltp", "mono" if stream.codec_context.layout.nb_channels == 1 else None)
            blocks = [out.to_ndarray()[0] for frame in container.decode(stream) for out in mono.resample(frame)]
            stated = round(stream.duration * (stream.time_base or 0) * stream.rate) if stream.duration else None
            return np.concatenate(blocks), stated
    except (av.FFmpegError, IndexError, ValueError):
        return soundfile.read(path, dtype="float32", always_2d=True)[0][:, 0], None


def lag(one: NDArray[np.float32], other: NDArray[np.float32]) -> int:
    """Return by how many samples the other signal is later."""
    size = min(len(one), len(other))
    product = np.fft.rfft(other[:size], 2 * size) * np.fft.rfft(one[:size], 2 * size).conj()
    shift = int(np.argmax(np.fft.irfft(product)))
    return shift - 2 * size if shift > size else shift


def is_read(path: Path) -> bool:
    """Return whether the library reads its own file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AudioWarning)
            return any(block.size for block in open_audio(path).blocks())
    except AudioError:
        return False


def row(folder: Path, suffixes: str, subtype: str, rate_hz: int) -> str:
    """Measure a format."""
    suffix = suffixes.split()[0]
    path, again = folder / f"a{suffix}", folder / f"b{suffix}"
    most = most_channels(path, subtype, rate_hz)
    channels = min(2, most)
    audio = noise(SAMPLES, channels)
    said = [write(name, subtype, rate_hz, channels, audio) for name in (path, again)]
    decoded, stated = decode(path)
    more = len(decoded) - SAMPLES
    samples = "exact" if not more or stated == SAMPLES else f"{more:+,}"
    found = read_belongings(path)
    tags = {name.lower() for name in found.tags}
    cells = (
        suffixes,
        plan_target(path, AudioFile(path, rate_hz, channels, 0, "", subtype)).encoding,
        "yes" if is_read(path) else "no",
        "all" if tags == {"title", "x-free"} else "some" if tags else "",
        "yes" if [picture.data for picture in found.pictures] == [PICTURE] else "",
        "yes" if len(found.chapters) == 2 else "",
        str(most),
        samples,
        said[0],
        str(lag(audio[0], decoded)),
        "yes" if path.read_bytes() == again.read_bytes() else "no",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Measure, and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table would change")
    check = parser.parse_args().check
    av.logging.set_level(None)
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    with tempfile.TemporaryDirectory() as folder:
        lines += [row(Path(folder), *found) for found in ROWS]
    before = PAGE.read_text("utf-8")
    after = SECTION.sub(lambda match: f"{match['head']}\n{chr(10).join(lines)}\n\n{match['tail']}", before)
    if check:
        return int(before != after)
    PAGE.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
