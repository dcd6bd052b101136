"""Speed and sound of a backend's precisions, all in one run.

    python benchmarks/precisions.py MODEL [--backend openvino] [--precisions fp32 bf16 int8] [--pairs PAIRS_DIR]

Speed: the precisions take turns, A B C A B C ...; what counts is the median over the rounds of the ratio to the
first in the same round. Sound, with PAIRS_DIR (two folders, `noisy` and `clean`, of 16 kHz mono files): by their
signal-to-noise ratio, and the same with their noise turned down to 10, 15, 20 and 25 dB in turn. Needs `[eval]`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from frcrn_accel import Denoiser
from frcrn_accel.backends import resolve_backend
from frcrn_accel.evaluate import pesq_wb, si_sdr_db
from frcrn_accel.model.topology import HOP_SAMPLES, SAMPLE_RATE_HZ
from frcrn_accel.models import find_model

Audio = NDArray[np.float32]
TURNED_DOWN_DB = (10, 15, 20, 25)


def speed(options: argparse.Namespace) -> None:
    model = find_model(options.model)
    hops = int(options.seconds * SAMPLE_RATE_HZ) // HOP_SAMPLES
    audio = (0.056 * np.random.default_rng(0).standard_normal((1, hops * HOP_SAMPLES))).astype(np.float32)
    sessions = {
        precision: resolve_backend(options.backend, precision).load(model, options.threads)
        for precision in options.precisions
    }
    for session in sessions.values():
        session.run(audio)
    wall_s: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.rounds):
        for precision, session in sessions.items():
            began = time.perf_counter()
            session.run(audio)
            wall_s[precision].append(time.perf_counter() - began)
    print(f"{model.metadata.channels} channels, {model.metadata.unets} U-Net(s), {options.seconds:g} s clip")
    print("| precision | median s | best s | real-time factor | times the speed (range) | on |")
    print("|---|---|---|---|---|---|")
    first = wall_s[options.precisions[0]]
    for precision, times in wall_s.items():
        ratios = sorted(a / b for a, b in zip(first, times, strict=True))
        median = statistics.median(times)
        print(
            f"| {precision} | {median:.3f} | {min(times):.3f} | {median / options.seconds:.3f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) | {sessions[precision].device} |"
        )


def read_pairs(folder: Path) -> list[tuple[str, Audio, Audio]]:
    """Group, noisy, clean."""
    pairs = []
    for i, path in enumerate(sorted((folder / "noisy").iterdir())):
        noisy, _ = soundfile.read(path, dtype="float32")
        clean, _ = soundfile.read(folder / "clean" / path.name, dtype="float32")
        noise = noisy - clean
        snr_db = 10 * np.log10(np.mean(clean**2) / np.mean(noise**2))
        pairs.append((f"{5 * np.floor(snr_db / 5):.0f} to {5 * np.floor(snr_db / 5) + 5:.0f} dB", noisy, clean))
        wanted_db = TURNED_DOWN_DB[i % len(TURNED_DOWN_DB)]
        turned_down = clean + noise * np.float32(10 ** ((snr_db - wanted_db) / 20))
        pairs.append((f"turned down to {wanted_db} dB", turned_down, clean))
    return pairs


def ovrl(audio: Audio) -> float:
    """DNSMOS overall score. The networks want full scale at 1.0 and no more."""
    from speechmos import dnsmos

    return float(dnsmos.run(audio / max(1.0, float(np.abs(audio).max())), SAMPLE_RATE_HZ)["ovrl_mos"])


def sound(options: argparse.Namespace) -> None:
    pairs = read_pairs(options.pairs)
    groups = sorted({group for group, _, _ in pairs})
    outputs = {}
    for precision in options.precisions:
        with Denoiser(
            options.model, backend=options.backend, precision=precision, threads=options.threads
        ) as denoiser:
            outputs[precision] = [denoiser(noisy, SAMPLE_RATE_HZ) for _, noisy, _ in pairs]
    first, *others = options.precisions

    def means(values: list[float]) -> dict[str, float]:
        return {
            group: statistics.fmean(value for value, (of, _, _) in zip(values, pairs, strict=True) if of == group)
            for group in groups
        }

    cleans = [clean for _, _, clean in pairs]
    pesq = {
        precision: means([pesq_wb(clean, audio) for clean, audio in zip(cleans, audios, strict=True)])
        for precision, audios in outputs.items()
    }
    mos = {precision: means([ovrl(audio) for audio in audios]) for precision, audios in outputs.items()}
    print(f"{len(pairs)} clips, against {first}")
    print("| precision | clips | PESQ-WB change, % | DNSMOS OVRL change | SI-SDR to it, mean (worst), dB |")
    print("|---|---|---|---|---|")
    for precision in others:
        near = [si_sdr_db(a, b) for a, b in zip(outputs[first], outputs[precision], strict=True)]
        for group in groups:
            inside = [value for value, (of, _, _) in zip(near, pairs, strict=True) if of == group]
            print(
                f"| {precision} | {group} | {100 * (pesq[precision][group] / pesq[first][group] - 1):+.2f} "
                f"| {mos[precision][group] - mos[first][group]:+.3f} "
                f"| {statistics.fmean(inside):.1f} ({min(inside):.1f}) |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "int8"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pairs", type=Path)
    options = parser.parse_args()
    speed(options)
    if options.pairs:
        sound(options)


if __name__ == "__main__":
    main()
