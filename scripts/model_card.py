"""Make the pictures and audio of a model card: spectrograms of pairs, and denoised examples from the package.

    python scripts/model_card.py PAIRS_DIR OUT_DIR [--model frcrn-small] [--files 00 01 ...]

PAIRS_DIR has `noisy` and `clean`. OUT_DIR gets a JPEG of noisy, denoised and clean for each file, and FLAC files of
examples of the web page, which may be redistributed, before and after. Needs the extras `[ort]` and `[train]`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import soundfile
from matplotlib.figure import Figure
from numpy.typing import NDArray
from spectrograms import draw_spectrogram

import frcrn_accel
from frcrn_accel import Denoiser
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quality.clips import read_clips

EXAMPLES = Path(frcrn_accel.__file__).with_name("serve") / "page" / "examples"
RATE_HZ = 16_000
HOP = 128
SHOWN_S = 6


def draw(title: str, signals: dict[str, NDArray[np.float32]], path: Path) -> None:
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, (name, audio) in zip(figure.subplots(1, len(signals), sharey=True), signals.items(), strict=True):
        draw_spectrogram(axes, audio[: SHOWN_S * RATE_HZ], RATE_HZ, hop=HOP)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("s")
    figure.axes[0].set_ylabel("kHz")
    figure.savefig(path, dpi=75, pil_kwargs={"quality": 75})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="frcrn-small")
    parser.add_argument(
        "--files", nargs="+", metavar="NAME", help="names without suffix; by default ten, evenly spread"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    denoiser = Denoiser(options.model, backend="ort")
    clips = read_clips(options.pairs, RATE_HZ)
    if options.files:
        clips = [clip for clip in clips if clip.path.stem in options.files]
    else:
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, min(10, len(clips))).astype(int)]
    for clip in clips:
        assert clip.clean is not None
        denoised = denoiser(clip.noisy, RATE_HZ)
        before_db, after_db = si_sdr_db(clip.clean, clip.noisy), si_sdr_db(clip.clean, denoised)
        title = f"{clip.path.stem}: SI-SDR {before_db:.1f} dB to {after_db:.1f} dB"
        draw(
            title,
            {"noisy": clip.noisy, "denoised": denoised, "clean": clip.clean},
            options.out / f"{clip.path.stem}.jpg",
        )
        print(title)
    for path in sorted(EXAMPLES.glob("*.flac")):
        noisy, rate_hz = soundfile.read(path, dtype="float32")
        shutil.copyfile(path, options.out / f"{path.stem}-noisy.flac")
        soundfile.write(options.out / f"{path.stem}-denoised.flac", denoiser(noisy, rate_hz), rate_hz)


if __name__ == "__main__":
    main()
