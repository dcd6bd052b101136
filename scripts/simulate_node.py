"""Simulate live streams on one thread: how many it holds, and how late they are answered.

    python scripts/simulate_node.py [REPORT.json] [--backend ort] [--minutes 5]

The times of a call for 1, 2, 4, ... streams are those that benchmarks/streaming.py measured (by default
benchmarks/results/streams-small-stream.json). Streams send a step of audio at a time, each with its own phase. The
thread takes all steps that wait, at most one of each stream, into a shared call, as the server does. The time of a
call is drawn from the log-normal distribution with the measured median and 99 % quantile; between the measured
numbers of streams these are interpolated. Network and transport are not included. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

REPORT = Path(__file__).parents[1] / "benchmarks" / "results" / "streams-small-stream.json"
QUANTILE_99 = 2.326  # of the standard normal distribution
LIMITS_MS = (20.0, 50.0, 100.0)
Times = Mapping[int, tuple[float, float]]  # by the number of streams in a call: median and 99 % quantile, ms


def read_times(report: Path, backend: str) -> dict[str, Times]:
    """Return the times by step."""
    found = json.loads(report.read_text(encoding="utf-8"))[backend]["streams"]
    return {
        step: {int(count): (cell["p50_ms"], cell["p99_ms"]) for count, cell in counts.items()}
        for step, counts in found.items()
    }


def answer_times_ms(times: Times, streams: int, step_ms: float, minutes: float, seed: int = 0) -> np.ndarray:
    """Return the time from the arrival of each step to its answer, in the order of the calls."""
    rng = np.random.default_rng(seed)
    counts = sorted(times)
    medians, highs = (np.array([times[count][side] for count in counts]) for side in (0, 1))
    next_ms = rng.uniform(0, step_ms, streams)  # arrival of the first step of each stream that is not answered
    now_ms, end_ms = 0.0, 60_000 * minutes
    late: list[np.ndarray] = []
    while now_ms < end_ms:
        now_ms = max(now_ms, float(next_ms.min()))
        waiting = next_ms <= now_ms
        taken = int(waiting.sum())
        median, high = np.interp(taken, counts, medians), np.interp(taken, counts, highs)
        now_ms += float(median * np.exp(rng.standard_normal() * np.log(high / median) / QUANTILE_99))
        late.append(now_ms - next_ms[waiting])
        next_ms[waiting] += step_ms
    return np.concatenate(late)


def most_streams(times: Times, step_ms: float, limit_ms: float, minutes: float) -> tuple[int, float]:
    """Return the most streams whose 99 % quantile is within a limit, and that quantile; (0, nan) for none."""
    best = (0, float("nan"))
    for streams in range(1, max(times) + 1):
        p99_ms = float(np.quantile(answer_times_ms(times, streams, step_ms, minutes), 0.99))
        if p99_ms > limit_ms:
            break
        best = (streams, p99_ms)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?", default=REPORT)
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--minutes", type=float, default=5)
    arguments = parser.parse_args()
    heads = " | ".join(f"p99 within {limit:g} ms" for limit in LIMITS_MS)
    print(f"| a step | {heads} |\n|---|{'---|' * len(LIMITS_MS)}")
    for step, times in read_times(arguments.report, arguments.backend).items():
        step_ms = float(step.split()[0])
        found = [most_streams(times, step_ms, limit, arguments.minutes) for limit in LIMITS_MS]
        print(f"| {step} | {' | '.join(f'{n} ({p99:.0f} ms)' if n else 'none' for n, p99 in found)} |")


if __name__ == "__main__":
    main()
