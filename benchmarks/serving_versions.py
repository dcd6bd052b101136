"""Compare the server with that of an earlier version, in turns, on loopback: `python serving_versions.py PYTHON`.

PYTHON is the interpreter of an environment with the earlier version and its `[ort,serve]`. Servers of both run all
the time, and in each round take turns: files of 10 s, with as many concurrent requests as they compute, then a live
stream of 20 ms frames in real time. The library itself takes a turn at the stream, too, in this process. Shown are
the medians of the rounds, and the median of the ratios in each round, this version over the earlier one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from contextlib import ExitStack

import numpy as np
import soundfile

from frcrn_accel import Denoiser
from serving import FRAME_S, NOISY, bodies, closed_loop, live, percentiles_ms, server

BEFORE, NOW, LIBRARY = "before", "now", "library"


def live_in_library(denoiser: Denoiser, seconds: float) -> list[float]:
    """Return the times from a chunk to what the library makes of it, see `serving.live`."""
    audio = np.tile(soundfile.read(NOISY, dtype="float32")[0], 3)
    samples = int(FRAME_S * 16_000)
    stream = denoiser.stream(16_000)
    began = time.perf_counter()
    times = []
    for frame in range(int(seconds / FRAME_S)):
        due = began + frame * FRAME_S
        time.sleep(max(0.0, due - time.perf_counter()))
        start = frame * samples % (len(audio) - samples)
        stream.process(audio[start : start + samples])
        times.append(time.perf_counter() - due)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", help="interpreter with the earlier version")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--round-s", type=float, default=10, help="length of each turn, s")
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--model", default="frcrn-small-stream", help="model of the library's stream")
    options = parser.parse_args()

    files = [body for body in bodies() if body.audio_s == 10]
    threads = len(os.sched_getaffinity(0))
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        denoiser = stack.enter_context(Denoiser(options.model, backend=options.backend, threads=1))
        servers = {
            who: stack.enter_context(server(options.backend, 1, threads, python))
            for who, python in ((BEFORE, options.python), (NOW, sys.executable))
        }
        for number in range(options.rounds):
            turns = list(servers) if number % 2 == 0 else list(servers)[::-1]
            for who in turns:
                speed = asyncio.run(closed_loop(servers[who], files, options.round_s))
                found.setdefault(("files of 10 s, s of audio per s", who), []).append(speed)
            for who in (*turns, LIBRARY):
                if who == LIBRARY:
                    times = live_in_library(denoiser, options.round_s)
                else:
                    times = asyncio.run(live(servers[who], 1, options.round_s))
                for name, value in percentiles_ms(times).items():
                    found.setdefault((f"frames of 20 ms, {name}", who), []).append(value)
    for what in dict.fromkeys(what for what, _ in found):
        medians = {who: statistics.median(values) for (name, who), values in found.items() if name == what}
        ratios = [now / before for now, before in zip(found[what, NOW], found[what, BEFORE], strict=True)]
        shown = ", ".join(f"{who} {value:.2f}" for who, value in medians.items())
        print(f"{what}: {shown}; now/before {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
