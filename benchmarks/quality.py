"""Quality of the denoised audio on pairs of noisy and clean files of the same names.

    python benchmarks/quality.py PAIRS_DIR [--model frcrn-small] [--backend ort] [--json OUT.json]

PAIRS_DIR has two folders, `noisy` and `clean`, of 16 kHz mono files. Needs the extra `[eval]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile

from frcrn_accel import Denoiser
from frcrn_accel.evaluate import bootstrap_interval, pesq_wb, si_sdr_db, stoi
from frcrn_accel.model.topology import SAMPLE_RATE_HZ

METRICS = {"PESQ-WB": pesq_wb, "STOI": stoi, "SI-SDR, dB": si_sdr_db}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--model", default="frcrn-small")
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    denoiser = Denoiser(options.model, backend=options.backend)
    scores: dict[str, dict[str, list[float]]] = {name: {"noisy": [], "denoised": []} for name in METRICS}
    paths = sorted((options.pairs / "noisy").iterdir())
    for path in paths:
        noisy, rate = soundfile.read(path, dtype="float32")
        clean, clean_rate = soundfile.read(options.pairs / "clean" / path.name, dtype="float32")
        if rate != SAMPLE_RATE_HZ or clean_rate != SAMPLE_RATE_HZ or noisy.shape != clean.shape or noisy.ndim != 1:
            parser.error(f"{path.name}: expected two mono files of one length at {SAMPLE_RATE_HZ} Hz")
        denoised = denoiser(noisy, rate)
        for name, metric in METRICS.items():
            scores[name]["noisy"].append(metric(clean, noisy))
            scores[name]["denoised"].append(metric(clean, denoised))

    print(f"{denoiser.model.name} on {denoiser.backend}, {len(paths)} pairs, mean and 95 % interval of the mean")
    print("| | noisy | denoised |")
    print("|---|---|---|")
    summary = {}
    for name, columns in scores.items():
        cells = []
        for column, values in columns.items():
            mean, (low, high) = float(np.mean(values)), bootstrap_interval(np.asarray(values))
            summary[f"{name} {column}"] = {"mean": mean, "interval": [low, high]}
            digits = 3 if name == "STOI" else 2
            cells.append(f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        print(f"| {name} | {' | '.join(cells)} |")
    if options.json:
        result = {"model": denoiser.model.name, "backend": denoiser.backend, "pairs": len(paths), "scores": summary}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
