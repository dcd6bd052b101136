"""Make the pictures and the sound of README.md and of the documentation.

    python scripts/pictures.py

docs/sound/before.mp3 and after.mp3 are examples/noisy.wav and what the packaged model makes of it;
docs/before-after.png shows both. docs/speed-and-sound.png is drawn from benchmarks/results, and measures nothing.
Each picture holds the digest of what it was made from, which a test compares.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrograms import draw_spectrogram, spectrogram_db

from frcrn_accel import Denoiser
from frcrn_accel.models import DEFAULT_MODEL, find_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
NOISY = REPOSITORY / "examples" / "noisy.wav"
RESULTS = REPOSITORY / "benchmarks" / "results"
DOCS = REPOSITORY / "docs"
KEY = "Made from"  # of the text in a picture that holds the digest
COLOURS = 64  # of a picture: a quarter of the bytes
OURS, THEIRS = "#00796b", "#9e9e9e"
LABELS = {
    "openvino:int8": "OpenVINO, INT8",
    "openvino:bf16": "OpenVINO, bf16",
    "ort": "ONNX Runtime, fp32",
    "ort-static-int8": "ONNX Runtime, INT8",
    "torch": "PyTorch",
    "upstream-torch": "authors' code, PyTorch",
    "upstream-ort": "authors' code, ONNX Runtime",
}
METRICS = {"PESQ-WB": (1, 4.64), "DNSMOS OVRL": (1, 5)}


def sources() -> dict[str, list[Path]]:
    """Return what each picture is made from."""
    return {
        "before-after.png": [NOISY, find_model(DEFAULT_MODEL).path],
        "speed-and-sound.png": [RESULTS / "speed-small.json", RESULTS / "quality.json"],
    }


def digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def save(figure: Figure, target: Path, text: dict[str, str]) -> None:
    """Write a PNG with few colours and a text."""
    from PIL import Image, PngImagePlugin

    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    information = PngImagePlugin.PngInfo()
    for key, value in text.items():
        information.add_text(key, value)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(target, pnginfo=information, optimize=True)


def draw_before_after(target: Path, text: dict[str, str]) -> None:
    import soundfile
    from matplotlib.figure import Figure

    noisy, rate_hz = soundfile.read(NOISY, dtype="float32")
    with Denoiser(backend="ort") as denoiser:
        clean = denoiser(noisy, sample_rate=rate_hz)
    for name, audio in (("before", noisy), ("after", clean)):
        soundfile.write(DOCS / "sound" / f"{name}.mp3", audio, rate_hz)
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    highest_db = float(spectrogram_db(noisy).max())
    for axes, title, audio in zip(
        figure.subplots(1, 2, sharey=True), ("before", "after"), (noisy, clean), strict=True
    ):
        draw_spectrogram(axes, audio, rate_hz, highest_db)
        axes.set(title=title, xlabel="s")
    figure.axes[0].set_ylabel("kHz")
    save(figure, target, text)


def draw_speed(axes: Axes, report: Any) -> None:
    [group] = report["groups"]
    rows = sorted(
        (row for row in group["rows"] if row["configuration"] in LABELS), key=lambda row: row["real_time_factor"]
    )
    times = [1 / row["real_time_factor"] for row in rows]
    colours = [THEIRS if row["configuration"].startswith("upstream") else OURS for row in rows]
    bars = axes.barh([LABELS[row["configuration"]] for row in rows], times, color=colours)
    axes.bar_label(bars, [f"{time:.0f}" for time in times], padding=3)
    axes.invert_yaxis()
    axes.set(title="Speed: times faster than real time", xlim=(0, 1.12 * max(times)))
    axes.set_xlabel(
        f"{group['model']}, {group['threads']} threads, {report['machine']['cpu']}, {report['began'][:10]}"
    )


def draw_sound(axes: Axes, report: Any) -> None:
    for place, (metric, (lowest, highest)) in enumerate(METRICS.items()):
        found = report["summary"][metric]
        for side, colour in (("noisy", THEIRS), ("denoised", OURS)):
            value = found[side]
            share = [(x - lowest) / (highest - lowest) for x in (value["mean"], *value["interval"])]
            y = place + (-0.18 if side == "noisy" else 0.18)
            error = [[share[0] - share[1]], [share[2] - share[0]]]
            axes.barh(
                y, share[0], height=0.34, color=colour, xerr=error, capsize=3, label=side if not place else None
            )
            axes.text(share[2] + 0.03, y, f"{side} {value['mean']:.2f}", va="center")
    names = [f"{name}\n({low:g} to {high:g})" for name, (low, high) in METRICS.items()]
    axes.set_yticks(range(len(METRICS)), names)
    axes.invert_yaxis()
    axes.set(title="Sound: mean and 95 % interval", xlim=(0, 1), xticks=[])
    axes.set_xlabel(f"{report['model']}, {len(report['clips'])} recordings, -2.5 to 12.5 dB SNR")


def draw_speed_and_sound(target: Path, text: dict[str, str]) -> None:
    from matplotlib.figure import Figure

    speed, quality = (json.loads(file.read_text(encoding="utf-8")) for file in sources()[target.name])
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_speed(left, speed)
    draw_sound(right, quality)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    save(figure, target, text)


def main() -> None:
    (DOCS / "sound").mkdir(exist_ok=True)
    for name, draw in (("before-after.png", draw_before_after), ("speed-and-sound.png", draw_speed_and_sound)):
        draw(DOCS / name, {KEY: digest(sources()[name])})


if __name__ == "__main__":
    main()
