"""Check films of ten minutes: the picture is copied bit by bit, and the sound stays in step from start to end.

    python scripts/film_check.py [--minutes 10] [--denoise]

Needs `imageio-ffmpeg`. Without `--denoise` the sound is encoded again as it is, so that what differs is the fault of
the containers. With it the model runs, and clicks are found again by correlation with the decoded source.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import soundfile

from frcrn_accel import Denoiser
from frcrn_accel.files import Sound, open_audio, write_film

RATE_HZ = 48_000
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2")
VP8 = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8")
CODINGS = {".mp4": (*H264, "-c:a", "aac"), ".mov": (*H264, "-c:a", "aac"), ".mkv": (*H264, "-c:a", "aac")}
CODINGS[".webm"] = (*VP8, "-c:a", "libopus")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--denoise", action="store_true", help="run the model, on plain films only")
    options = parser.parse_args()
    is_right = True
    with tempfile.TemporaryDirectory() as folder:
        sound = make_sound(Path(folder), round(options.minutes * 60 * RATE_HZ))
        for suffix in CODINGS:
            for kind in ("plain",) if options.denoise else ("plain", "late", "two"):
                source, target = Path(folder, f"film{suffix}"), Path(folder, f"new{suffix}")
                make_film(source, sound, kind, options.minutes * 60)
                if options.denoise:
                    Denoiser().denoise_file(source, target)
                else:
                    write_again(source, target)
                is_same = picture(source) == picture(target)
                shifts = [lags(heard(source, track), heard(target, track)) for track in range(1 + (kind == "two"))]
                is_right &= is_same and max(abs(shift) for pair in shifts for shift in pair) <= 1
                print(f"{suffix} {kind}: picture {'equal' if is_same else 'DIFFERS'}, lags {shifts}", flush=True)
                source.unlink()
                target.unlink()
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return not is_right


def make_sound(folder: Path, samples: int) -> Path:
    """Write quiet noise with two clicks like consonants: 1 s after the start and 1 s before the end."""
    generator = np.random.default_rng(0)
    audio = 0.003 * generator.standard_normal(samples, np.float32)
    for start in (RATE_HZ, samples - RATE_HZ):
        audio[start : start + 240] += 0.8 * np.hanning(240) * generator.uniform(-1, 1, 240)
    path = folder / "sound.wav"
    soundfile.write(path, audio, RATE_HZ)
    return path


def make_film(path: Path, sound: Path, kind: str, seconds: float) -> None:
    late = ("-itsoffset", "0.437") if kind == "late" else ()
    second = ("-map", "1:a", "-metadata:s:a:1", "language=ita") if kind == "two" else ()
    picture = ("-f", "lavfi", "-i", f"testsrc=size=96x64:rate=25:duration={seconds}")
    ffmpeg(*picture, *late, "-i", sound, "-map", "0:v", "-map", "1:a", *second, *CODINGS[path.suffix], path)


def write_again(source: Path, target: Path) -> None:
    files = [open_audio(source, number) for number in range(open_audio(source).tracks)]
    write_film(target, source, {file.track: Sound(file, file.blocks()) for file in files}, overwrite=False)


def picture(path: Path) -> tuple[int, str]:
    """Return the number of packets of the picture, and their digest."""
    digest, packets = hashlib.sha256(), 0
    with av.open(str(path)) as film:
        for packet in film.demux(film.streams.video[0]):
            digest.update(bytes(packet) if packet.size else b"")
            packets += bool(packet.size)
    return packets, digest.hexdigest()


def heard(path: Path, track: int) -> np.ndarray:
    """Return the sound as a player puts it on the time line."""
    form = ("-map", f"0:a:{track}", "-af", "aresample=async=1:first_pts=0", "-ac", 1, "-ar", RATE_HZ, "-f", "f32le")
    return np.frombuffer(ffmpeg("-copyts", "-i", path, *form, "-"), np.float32)


def lags(expected: np.ndarray, found: np.ndarray) -> list[int]:
    """Return by how many samples the first and the last click have moved."""
    half, result = len(expected) // 2, []
    for start, part in ((0, expected[:half]), (half, expected[half:])):
        at = start + int(np.abs(part).argmax())
        piece, around = expected[at - 1_000 : at + 1_000], found[at - 3_000 : at + 3_000]
        result.append(int(np.correlate(around, piece).argmax()) - 2_000)
    return result


def ffmpeg(*arguments: Any) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


if __name__ == "__main__":
    sys.exit(main())
