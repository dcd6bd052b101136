"""Score a model on noisy speech, and on speech with rumble and with a bang.

    python benchmarks/robustness.py PAIRS_DIR [--model frcrn-small] [--backend ort] [--json OUT.json]

PAIRS_DIR has two folders, `noisy` and `clean`, of pairs with the same names. Three tables in one:

- the pairs themselves, as `frcrn-accel evaluate --components` scores them: PESQ-WB, STOI, SI-SDR, DNSMOS, what
  becomes of clean speech and of noise alone (`--skip-pairs` leaves them out: they take most of the time);
- the clean speech with rumble from 5 to 45 Hz, 5 dB above it: SI-SDR of the output;
- the clean speech with one bang of 100 ms at 0 dBFS, in speech of -26 dBFS: by how much the level of the speech half
  a second and more from the bang differs from that without the bang.

Means are over the clips, with 95 % bootstrap intervals. The sets are seeded by the number of the clip.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from intervals import mean_and_interval, with_interval
from numpy.typing import NDArray

from frcrn_accel import Denoiser
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.evaluate import evaluate_clips
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quality.clips import read_clips
from frcrn_accel.train.acoustics import active_level

Audio = NDArray[np.float32]
RUMBLE_HZ = (5, 45)
RUMBLE_OVER_SPEECH_DB = 5
SPEECH_DBFS = -26  # of the samples whose power is above the mean
BANG_S = 0.1
APART_S = 0.5


def rumble(samples: int, rng: np.random.Generator) -> Audio:
    """Return noise between two frequencies that falls with frequency, RMS 1."""
    hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE_HZ)
    inside = (hz >= RUMBLE_HZ[0]) & (hz <= RUMBLE_HZ[1])
    gain = np.where(inside, 1 / np.maximum(hz, 1), 0)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)), np.float32)


def with_rumble(clean: Audio, rng: np.random.Generator) -> Audio:
    level = np.sqrt(np.mean(np.square(clean, dtype=np.float64)))
    return clean + rumble(len(clean), rng) * np.float32(level * 10 ** (RUMBLE_OVER_SPEECH_DB / 20))


def at_level(clean: Audio) -> Audio:
    return clean * np.float32(10 ** (SPEECH_DBFS / 20) / active_level(clean))


def with_bang(clean: Audio, rng: np.random.Generator) -> tuple[Audio, slice]:
    """Return speech with a bang, and where it is."""
    length = int(BANG_S * SAMPLE_RATE_HZ)
    bang = rng.standard_normal(length) * np.exp(-4 * np.arange(length) / length)
    start = int(rng.uniform(0.2, 0.8) * (len(clean) - length))
    noisy = clean.copy()
    noisy[start : start + length] += (bang / np.abs(bang).max()).astype(np.float32)
    return np.clip(noisy, -1, 1), slice(start, start + length)


def change_db(without: Audio, with_it: Audio, bang: slice) -> float:
    """Return the change of level of what is apart from the bang."""
    apart = np.ones(len(without), bool)
    apart[max(0, bang.start - int(APART_S * SAMPLE_RATE_HZ)) : bang.stop + int(APART_S * SAMPLE_RATE_HZ)] = False
    before, after = (np.mean(np.square(audio[apart], dtype=np.float64)) for audio in (without, with_it))
    return float(10 * np.log10(after / before))


def summary(values: list[float]) -> dict[str, Any]:
    return {**mean_and_interval(values), "clips": len(values), "each": values}


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a model on noise, rumble and bangs.")
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="frcrn-small")
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--skip-pairs", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    clips = read_clips(options.pairs, SAMPLE_RATE_HZ)
    found: dict[str, Any] = {"model": options.model}
    print("| set | measure | noisy | denoised |\n|---|---|---|---|")

    def row(name: str, measure: str, noisy: str, value: dict[str, Any], digits: int = 2) -> None:
        print(f"| {name} | {measure} | {noisy} | {with_interval(value, digits)} |", flush=True)

    rumbles: dict[str, list[float]] = {"noisy": [], "denoised": [], "clean": []}
    changes: list[float] = []
    with Denoiser(model=options.model, backend=options.backend, threads=1) as denoiser:
        for i, clip in enumerate(clips):
            assert clip.clean is not None
            clean, noisy = clip.clean, with_rumble(clip.clean, np.random.default_rng((1, i)))
            rumbles["noisy"].append(si_sdr_db(clean, noisy))
            rumbles["denoised"].append(si_sdr_db(clean, denoiser(noisy, SAMPLE_RATE_HZ)))
            rumbles["clean"].append(si_sdr_db(clean, denoiser(clean, SAMPLE_RATE_HZ)))
            speech = at_level(clean)
            loud, bang = with_bang(speech, np.random.default_rng((2, i)))
            quiet_output, loud_output = (denoiser(audio, SAMPLE_RATE_HZ) for audio in (speech, loud))
            changes.append(change_db(quiet_output, loud_output, bang))
    found["rumble"] = {name: summary(values) for name, values in rumbles.items()}
    found["bang"] = {"change_db": summary(changes), "size_db": summary([abs(change) for change in changes])}
    row("rumble", "SI-SDR, dB", f"{np.mean(rumbles['noisy']):.2f}", found["rumble"]["denoised"])
    row("the same without rumble", "SI-SDR, dB", "", found["rumble"]["clean"])
    row("bang", "change of level elsewhere, dB", "", found["bang"]["change_db"])
    row("bang", "size of it, dB", "", found["bang"]["size_db"])
    print(f"| bang | largest, dB | | {max(map(abs, changes)):.2f} |")
    if not options.skip_pairs:
        scores = evaluate_clips(
            clips,
            DenoiserOptions(model=options.model, backend=options.backend),
            components=True,
            processes=options.processes,
        )
        found["pairs"] = scores.to_json()
        for line in scores.summaries():
            noisy_mean = "" if line.noisy is None else f"{line.noisy[0]:.3f}"
            mean, interval = line.denoised
            row("pairs", line.metric, noisy_mean, {"mean": mean, "interval": interval}, 3)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
