"""Compare the quality of configurations, on pairs of noisy and clean files of the same names.

    python benchmarks/quality.py PAIRS_DIR --configurations ort openvino:bf16 ... [--model MODEL] [--json OUT.json]

PAIRS_DIR has two folders, `noisy` and `clean`, of 16 kHz mono files. Every pair is also used with its noise turned
down to certain signal-to-noise ratios, where losses are most visible.

A configuration is `BACKEND[:PRECISION][=MODEL]`; the first is the baseline of the others. The table has the changes
from it by signal-to-noise ratio, and whether PESQ-WB falls by at most `--max-pesq-drop-percent`. Intervals are 95 %
bootstrap intervals of the mean. To score a model itself, use `frcrn-accel evaluate`. Needs the extra `[eval]` and
those of the backends.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from intervals import mean_and_interval, with_interval
from numpy.typing import NDArray

from frcrn_accel import Denoiser
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
from frcrn_accel.quality import dnsmos, pesq_wb, si_sdr_db, stoi

Audio = NDArray[np.float32]
PESQ = "PESQ-WB"
# Each takes clean speech and the denoised signal.
METRICS: dict[str, Callable[[Audio, Audio], float]] = {
    PESQ: pesq_wb,
    "STOI": stoi,
    "SI-SDR, dB": si_sdr_db,
    "DNSMOS OVRL": lambda clean, audio: dnsmos(audio).ovrl,
}
AS_THEY_ARE = "as they are"
BIN_DB = 5


@dataclass(frozen=True)
class Clip:
    """A pair of files, or one with less noise made from it.

    Attributes:
        path: The noisy file.
        snr_db: Signal-to-noise ratio to turn the noise down to; None to leave the pair unchanged.
    """

    path: Path
    snr_db: float | None


def read(clip: Clip) -> tuple[str, Audio, Audio]:
    """Return the group of a clip, its noisy and its clean audio."""
    noisy, rate = soundfile.read(clip.path, dtype="float32")
    clean, clean_rate = soundfile.read(clip.path.parents[1] / "clean" / clip.path.name, dtype="float32")
    if rate != SAMPLE_RATE_HZ or clean_rate != SAMPLE_RATE_HZ or noisy.shape != clean.shape or noisy.ndim != 1:
        raise ValueError(f"{clip.path.name}: expected two mono files of one length at {SAMPLE_RATE_HZ} Hz")
    noise = noisy - clean
    snr_db = 10 * np.log10(np.mean(clean**2) / np.mean(noise**2))
    if clip.snr_db is None:
        least = BIN_DB * int(np.floor(snr_db / BIN_DB))
        return f"{AS_THEY_ARE}, {least} to {least + BIN_DB} dB", noisy, clean
    turned_down: Audio = clean + noise * np.float32(10 ** ((snr_db - clip.snr_db) / 20))
    return f"turned down to {clip.snr_db:g} dB", turned_down, clean


def measure(clip: Clip, model: str, configurations: tuple[str, ...]) -> dict[str, Any]:
    """Score the output of each configuration, and its SI-SDR to the output of the first one."""
    group, noisy, clean = read(clip)
    scores = {}
    agreements_db = {}
    expected = noisy
    for configuration in configurations:
        denoised: Audio = denoiser_of(configuration, model)(noisy, SAMPLE_RATE_HZ)
        scores[configuration] = {name: metric(clean, denoised) for name, metric in METRICS.items()}
        if configuration == configurations[0]:
            expected = denoised
        else:
            agreements_db[configuration] = float(np.minimum(si_sdr_db(expected, denoised), 100))
    return {"file": clip.path.name, "group": group, "scores": scores, "si_sdr_to_baseline_db": agreements_db}


_denoisers: dict[str, Denoiser] = {}  # of this process


def denoiser_of(configuration: str, model: str) -> Denoiser:
    if configuration not in _denoisers:
        name, _, file = configuration.partition("=")
        backend, _, precision = name.partition(":")
        _denoisers[configuration] = Denoiser(file or model, backend=backend, precision=precision or None, threads=1)
    return _denoisers[configuration]


def groups_of(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return results by group, sorted by signal-to-noise ratio, after all unchanged pairs together."""
    plain = [result for result in results if result["group"].startswith(AS_THEY_ARE)]

    def order(group: str) -> tuple[bool, float]:
        numbers = [float(word) for word in group.split() if word.lstrip("-").isdecimal()]
        return not group.startswith(AS_THEY_ARE), numbers[0]

    names = sorted({result["group"] for result in results}, key=order)
    by_name = {name: [result for result in results if result["group"] == name] for name in names}
    return {f"{AS_THEY_ARE}, all": plain, **by_name}


def changes(results: list[dict[str, Any]], configuration: str, baseline: str) -> dict[str, Any]:
    """Return the change of each score from the baseline; PESQ in percent of the baseline's mean."""
    found: dict[str, Any] = {}
    for name in METRICS:
        before = [result["scores"][baseline][name] for result in results]
        after = [result["scores"][configuration][name] for result in results]
        unit = 100 / np.mean(before) if name == PESQ else 1.0
        found[name] = mean_and_interval([float(unit * (b - a)) for a, b in zip(before, after, strict=True)])
    agreements_db = [result["si_sdr_to_baseline_db"][configuration] for result in results]
    found["si_sdr_to_baseline_db"] = {"mean": float(np.mean(agreements_db)), "worst": min(agreements_db)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="frcrn-small")
    parser.add_argument("--configurations", nargs="+", required=True, metavar="BACKEND[:PRECISION][=MODEL]")
    parser.add_argument(
        "--snrs", nargs="*", type=float, default=[10, 15, 20, 25], help="ratios to turn the noise down to, dB"
    )
    parser.add_argument("--limit", type=int, help="use only this many pairs, evenly spread over the folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--max-pesq-drop-percent", type=float, default=1.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    paths = sorted((options.pairs / "noisy").iterdir())
    if options.limit:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, min(options.limit, len(paths))).astype(int)]
    clips = [Clip(path, snr_db) for path in paths for snr_db in (None, *options.snrs)]
    baseline, *others = options.configurations

    results = []
    task = partial(measure, model=options.model, configurations=tuple(options.configurations))
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for result in pool.imap_unordered(task, clips):
            results.append(result)
            print(f"\r{len(results)} of {len(clips)} clips", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    results.sort(key=lambda result: (result["file"], result["group"]))
    groups = groups_of(results)

    table: dict[str, dict[str, Any]] = {}
    bar_percent = options.max_pesq_drop_percent
    print(f"{options.model}, changes from {baseline}; PESQ-WB may fall by at most {bar_percent:g} %")
    heads = ("configuration", "clips", "n", f"{PESQ}, %", "limit", "STOI", "SI-SDR, dB", "DNSMOS OVRL")
    print(f"| {' | '.join(heads)} | SI-SDR to the baseline (worst), dB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for configuration in others:
        name, _, file = configuration.partition("=")
        title = f"{name} {Path(file).name}".rstrip()
        table[configuration] = {}
        for group, members in groups.items():
            found = table[configuration][group] = changes(members, configuration, baseline)
            found["passed"] = found[PESQ]["mean"] >= -bar_percent
            near = found["si_sdr_to_baseline_db"]
            print(
                f"| {title} | {group} | {len(members)} | {with_interval(found[PESQ], 2, '+')} "
                f"| {'kept' if found['passed'] else 'MISSED'} | {found['STOI']['mean']:+.4f} "
                f"| {found['SI-SDR, dB']['mean']:+.2f} | {with_interval(found['DNSMOS OVRL'], 3, '+')} "
                f"| {near['mean']:.1f} ({near['worst']:.1f}) |"
            )
    if options.json:
        content = {
            "model": options.model,
            "configurations": options.configurations,
            "pairs": len(paths),
            "changes": table,
            "clips": results,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
