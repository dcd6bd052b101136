"""Measure streams: their quality, their speed, and whether an hour of streaming is stable.

    python benchmarks/streaming.py quality PAIRS_DIR [--model frcrn-small] [--json OUT.json]
    python benchmarks/streaming.py speed [--released-size] [--minutes 10] [--backends ort ...] [--json OUT.json]
    python benchmarks/streaming.py hour [--json OUT.json]

`quality` takes pairs of noisy and clean files (see benchmarks/quality.py) and compares streams with the whole pass:
with all of the look-ahead, a part, and none, and in the first seconds, with and without the typical statistics that a
stream starts with. Further backends, with seven, three and no frames of look-ahead, show the effect of INT8 and bf16
on streams. Needs the extra `[eval]`.

`speed` times every step of one stream, of one hop, and longer steps in turn with the whole pass of the same audio on
the same thread; then it finds out how many streams one process can run in real time, with their steps in common
calls. `--released-size` builds a network of that size with random weights (needs `[quantize]`).

`hour` sends an hour of audio through streams in chunks of different sizes, and compares the digests of the results.
Linux only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from intervals import mean_and_interval
from numpy.typing import NDArray
from quality import Clip, read

from frcrn_accel import Denoiser
from frcrn_accel.models import CACHE_DIR_VARIABLE, DEFAULT_MODEL
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES, SAMPLE_RATE_HZ
from frcrn_accel.streaming import Averaging, Stream, process_streams

Audio = NDArray[np.float32]
HOP_S = 0.02
START_S = (0.5, 1.0, 2.0, 4.0)
SILENT_DB = -45.0  # SI-SDR of a beginning whose speech or noise is below this is meaningless
STEPS_S = (0.02, 0.04, 0.1, 0.2)
STREAM_COUNTS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["quality", "speed", "hour"])
    parser.add_argument("pairs", type=Path, nargs="?")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--released-size", action="store_true")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--backends", nargs="+", help="backends; for quality the first is measured with every look-ahead"
    )
    parser.add_argument("--clips", type=int, help="use only this many pairs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    found = {"quality": quality, "speed": speed, "hour": hour}[options.what](options)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


# Quality.


def quality(options: argparse.Namespace) -> Any:
    from frcrn_accel.quality import dnsmos, pesq_wb, si_sdr_db

    if options.pairs is None:
        raise SystemExit("quality needs a folder of pairs: give PAIRS_DIR")
    pairs = [read(Clip(path, None))[1:] for path in sorted((options.pairs / "noisy").iterdir())[: options.clips]]
    first, *others = options.backends or ("ort", "ort-dynamic-int8", "ort-static-int8", "openvino")

    def stream(model: Denoiser, **arguments: Any) -> Callable[[Audio], Audio]:
        return lambda audio: through(model.stream(SAMPLE_RATE_HZ, step_s=0.5, **arguments), audio)

    denoiser = Denoiser(options.model, backend=first)
    variants: dict[str, Callable[[Audio], Audio]] = {
        "noisy": lambda audio: audio,
        "whole pass": lambda audio: denoiser(audio, SAMPLE_RATE_HZ),
        "stream, no typical start": stream(denoiser, averaging=Averaging(start_s=0)),
    }
    for backend in (first, *others):
        model = denoiser if backend == first else Denoiser(options.model, backend=backend)
        for frames in range(LOOKAHEAD_FRAMES, -1, -1) if backend == first else (LOOKAHEAD_FRAMES, 3, 0):
            lookahead_s = frames * model.model.unets * HOP_S
            name = f"stream, {1000 * lookahead_s:g} ms of look-ahead" + (f", {backend}" if backend != first else "")
            variants[name] = stream(model, lookahead_s=lookahead_s)
    rows = {}
    for name, denoise in variants.items():
        outputs = [denoise(noisy) for noisy, _ in pairs]
        scores = {
            "PESQ-WB": [pesq_wb(clean, out) for (_, clean), out in zip(pairs, outputs, strict=True)],
            "SI-SDR, dB": [si_sdr_db(clean, out) for (_, clean), out in zip(pairs, outputs, strict=True)],
            "DNSMOS OVRL": [dnsmos(out).ovrl for out in outputs],
        }
        for seconds in START_S:
            samples = int(seconds * SAMPLE_RATE_HZ)
            scores[f"SI-SDR of the first {seconds:g} s, dB"] = [
                si_sdr_db(clean[:samples], out[:samples])
                for (noisy, clean), out in zip(pairs, outputs, strict=True)
                if min(level_db(clean[:samples]), level_db((noisy - clean)[:samples])) > SILENT_DB
            ]
        rows[name] = {
            metric: {**mean_and_interval(values), "clips": len(values)} for metric, values in scores.items()
        }
        print(name, {metric: round(float(np.mean(values)), 3) for metric, values in scores.items()}, flush=True)
    return rows


def level_db(audio: Audio) -> float:
    return float(10 * np.log10(np.mean(audio**2) + 1e-12))


def through(stream: Stream, audio: Audio) -> Audio:
    """Send a whole signal through a stream, and remove the delay."""
    out = np.concatenate([stream.process(audio), stream.flush()])
    return out[stream.latency_samples :]


# Speed.


def speed(options: argparse.Namespace) -> Any:
    backends = options.backends or ("ort", "openvino")
    with tempfile.TemporaryDirectory() as folder:
        if options.released_size:
            os.environ[CACHE_DIR_VARIABLE] = folder
            options.model = str(released_size(Path(folder), backends))
        return {backend: speed_of(options, backend) for backend in backends}


def speed_of(options: argparse.Namespace, backend: str) -> Any:
    name, _, precision = backend.partition(":")
    denoiser = Denoiser(options.model, backend=name, precision=precision or None, threads=1)
    minute = speech_like(60)
    found: dict[str, Any] = {"device": denoiser.device, "steps": {}}
    for step_s in STEPS_S:
        size = round(step_s * SAMPLE_RATE_HZ)
        stream = denoiser.stream(SAMPLE_RATE_HZ, step_s=step_s)
        # Less audio for the longer steps: still enough for the percentiles.
        minutes = options.minutes if step_s == STEPS_S[0] else min(options.minutes, 2)
        taken_s = np.array([timed(stream.process, chunk) for chunk in chunks(minute, size, minutes)])[5:]
        # Take turns with the whole pass, ten seconds at a time.
        ratios = []
        for piece in 3 * np.split(minute, 6):
            whole_s = timed(lambda audio: denoiser(audio, SAMPLE_RATE_HZ), piece)
            stream_s = sum(timed(stream.process, piece[at : at + size]) for at in range(0, len(piece), size))
            ratios.append(stream_s / whole_s)
        cell = {
            "p50_ms": 1e3 * float(np.percentile(taken_s, 50)),
            "p99_ms": 1e3 * float(np.percentile(taken_s, 99)),
            "worst_ms": 1e3 * float(taken_s.max()),
            "rtf": float(np.sum(taken_s)) / (len(taken_s) * step_s),
            "late_percent": 100 * float(np.mean(taken_s > step_s)),
            "to_whole_pass": statistics.median(ratios),
            "steps": len(taken_s),
        }
        found["steps"][f"{1000 * step_s:g} ms"] = cell
        print(backend, f"{1000 * step_s:g} ms", {key: round(value, 3) for key, value in cell.items()}, flush=True)
    found["streams"] = {f"{1000 * step_s:g} ms": together(denoiser, backend, step_s) for step_s in (0.02, 0.1)}
    denoiser.close()
    return found


def together(denoiser: Denoiser, backend: str, step_s: float) -> Any:
    """Measure steps of more and more streams, until a step takes longer than its audio."""
    size = round(step_s * SAMPLE_RATE_HZ)
    audio = speech_like(20)
    found = {}
    for count in STREAM_COUNTS:
        streams = [denoiser.stream(SAMPLE_RATE_HZ, step_s=step_s) for _ in range(count)]
        taken_s = [timed(partial(all_at_once, streams), piece) for piece in chunks(audio, size, 1 / 6)]
        p50_s, p99_s = np.percentile(taken_s[5:], [50, 99])
        found[count] = {"p50_ms": 1e3 * float(p50_s), "p99_ms": 1e3 * float(p99_s)}
        times = f"p50 {1e3 * p50_s:.1f}, p99 {1e3 * p99_s:.1f} ms"
        print(f"{backend}, steps of {1000 * step_s:g} ms, {count} streams: {times}", flush=True)
        if p50_s > step_s:
            break
    return found


def all_at_once(streams: Sequence[Stream], piece: Audio) -> None:
    process_streams(streams, [piece] * len(streams))


def timed(function: Callable[[Audio], Any], audio: Audio) -> float:
    began = time.perf_counter()
    function(audio)
    return time.perf_counter() - began


def chunks(audio: Audio, size: int, minutes: float) -> Iterator[Audio]:
    """Yield chunks of audio that is repeated for some minutes."""
    for at in range(int(minutes * 60 * SAMPLE_RATE_HZ) // size):
        first = at * size % (len(audio) - size)
        yield audio[first : first + size]


def speech_like(seconds: float) -> Audio:
    """Return noise whose level rises and falls like that of speech."""
    rng = np.random.default_rng(0)
    samples = int(seconds * SAMPLE_RATE_HZ)
    envelope = 0.05 * (1 + np.sin(2 * np.pi * 3 * np.arange(samples) / SAMPLE_RATE_HZ)) + 0.01
    return (envelope * rng.standard_normal(samples)).astype(np.float32)


def released_size(folder: Path, backends: Sequence[str]) -> Path:
    """Write a seeded network, and cache the INT8 variants that the backends run, without the quality gate."""
    from frcrn_accel.bench.configurations import released_size_model
    from frcrn_accel.models import cached_variant, variant_key
    from frcrn_accel.quantize import CALIBRATION_AUDIO

    model = released_size_model(folder).file
    for method, calibration in (("dynamic", None), ("static", CALIBRATION_AUDIO)):
        if f"ort-{method}-int8" in backends:
            cached_variant(model, variant_key(method, ""), partial(quantized, model.path, method, calibration))
    return model.path


def quantized(path: Path, method: str, calibration: Path | None, out: Path) -> None:
    from frcrn_accel.quantize import quantize_model

    quantize_model(path, out, method, calibration=calibration, gate=None, overwrite=True)


# An hour.


def hour(options: argparse.Namespace) -> Any:
    denoiser = Denoiser(options.model, backend="ort", threads=1)
    found = []
    for rate, sizes in ((16_000, [320]), (16_000, [4_096, 1, 777]), (48_000, [960]), (48_000, [10_000, 33])):
        piece = np.resize(speech_like(60), 60 * rate)
        stream = denoiser.stream(rate, step_s=0.1)
        digest = hashlib.sha256()
        memory_mib = []
        received = 0
        sizes_in_turn = (size for _ in iter(int, 1) for size in sizes)
        while received < 3600 * rate:
            at = received % len(piece)
            chunk = piece[at : at + min(next(sizes_in_turn), 3600 * rate - received)]
            out = stream.process(chunk)
            assert out.shape == chunk.shape
            digest.update(out.tobytes())
            before, received = received, received + len(chunk)
            if received // (600 * rate) > before // (600 * rate):
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                memory_mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        digest.update(stream.flush().tobytes())
        row = {
            "rate": rate,
            "chunks": sizes,
            "latency_samples": stream.latency_samples,
            "sha256": digest.hexdigest(),
            "memory_mib_every_10_minutes": [round(value, 1) for value in memory_mib],
        }
        print(row, flush=True)
        found.append(row)
    for rate in (16_000, 48_000):
        if len({row["sha256"] for row in found if row["rate"] == rate}) != 1:
            raise SystemExit(f"at {rate} Hz the result depends on the size of the chunks")
    return found


if __name__ == "__main__":
    main()
