"""Measure the server under load, on loopback.

    python benchmarks/serving.py [--minutes 10] [--backend ort] [--batch-sizes 1 4] [--json OUT.json]

Starts `frcrn-accel serve` with each batch size, and measures:

- capacity: the throughput with as many concurrent requests as the server computes; the batch sizes take turns, and
  the gain is the median of the ratios of their rounds;
- load: requests at random times (a Poisson process), at 0.5, 1 and 3 times the capacity of the first batch size:
  latencies, rejected requests (429), the memory of the server, and whether each result equals, bit for bit, that of
  the same request alone;
- streams: live streams that send 20 ms at a time, in real time: the latency of each answer, and the number of streams
  in a call of the engine.

Requests are pieces of examples/noisy.wav of 3, 5, 10 and 40 s, WAV and FLAC, 16 and 48 kHz. The client runs on the
same machine and uses some of its CPU time. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import soxr
from websockets.asyncio.client import connect

from frcrn_accel.bench import describe_machine

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from server_process import ServerProcess

NOISY = Path(__file__).parents[1] / "examples" / "noisy.wav"
LENGTHS_S = (3, 5, 10, 40)
LOADS = (0.5, 1.0, 3.0)
ROUNDS = 6
CONCURRENCY, QUEUE = 4, 16  # the server's defaults
FRAME_S = 0.02
STREAM_COUNTS = (1, 4, 8, 16)


@dataclass(frozen=True)
class Body:
    """A request.

    Attributes:
        content: Body of the request.
        audio_s: Length of its audio.
    """

    content: bytes
    audio_s: float


@dataclass
class Load:
    """The results of the requests of one load.

    Attributes:
        latencies_s: Latencies of the requests that were denoised.
        statuses: Number of responses by status.
        audio_s: Length of the audio that was denoised.
        different: Number of results that differ from that of the same request alone.
        largest: Largest difference, relative to full scale.
    """

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    audio_s: float = 0.0
    different: int = 0
    largest: float = 0.0


@contextmanager
def server(backend: str, batch_size: int, threads: int, python: str = sys.executable) -> Iterator[ServerProcess]:
    options = ["--backend", backend, "--batch-size", str(batch_size), "--threads", str(threads)]
    options += ["--concurrency", str(CONCURRENCY), "--queue", str(QUEUE), "--max-streams", str(max(STREAM_COUNTS))]
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder, "log"), *options, python=python) as process,
    ):
        yield process
        process.end()


def memory_mb(where: ServerProcess) -> float:
    return where.metric("process_resident_memory_bytes") / 1e6


def bodies() -> list[Body]:
    """Return the requests, the same on each call."""
    audio, rate = soundfile.read(NOISY, dtype="float32")
    audio = np.tile(audio, 5)
    found = []
    for number, length_s in enumerate(LENGTHS_S):
        for copy in range(3):
            part = audio[(7 * number + copy) * 1000 :][: length_s * rate]
            to_rate = 48_000 if copy == 2 else rate
            file = io.BytesIO()
            soundfile.write(file, soxr.resample(part, rate, to_rate), to_rate, format=("WAV", "FLAC")[copy % 2])
            found.append(Body(file.getvalue(), length_s))
    return found


async def post(client: httpx.AsyncClient, body: Body, expected: bytes | None, load: Load) -> None:
    began = time.perf_counter()
    response = await client.post("/v1/denoise", content=body.content)
    load.statuses[response.status_code] += 1
    if response.status_code != 200:
        return
    load.latencies_s.append(time.perf_counter() - began)
    load.audio_s += body.audio_s
    if expected is not None and response.content != expected:
        load.different += 1
        one, other = (soundfile.read(io.BytesIO(content))[0] for content in (response.content, expected))
        load.largest = max(load.largest, float(np.abs(one - other).max()))


def client_of(where: ServerProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=where.url, timeout=600, limits=httpx.Limits(max_connections=None))


async def closed_loop(where: ServerProcess, requests: Sequence[Body], seconds: float) -> float:
    """Return the seconds of audio denoised in a second, with as many concurrent requests as the server computes."""
    load, deadline = Load(), time.perf_counter() + seconds
    began = time.perf_counter()
    async with client_of(where) as client:

        async def worker(number: int) -> None:
            while time.perf_counter() < deadline:
                await post(client, requests[number % len(requests)], None, load)
                number += CONCURRENCY

        await asyncio.gather(*(worker(number) for number in range(CONCURRENCY)))
    return load.audio_s / (time.perf_counter() - began)


async def open_loop(
    where: ServerProcess,
    requests: Sequence[Body],
    expected: Sequence[bytes],
    per_second: float,
    seconds: float,
    seed: int,
) -> tuple[Load, float]:
    """Send requests at random times, whether or not earlier ones are answered; also return the total time."""
    load, rng = Load(), random.Random(seed)
    began = time.perf_counter()
    tasks = []
    async with client_of(where) as client:
        at = began
        while at < began + seconds:
            at += rng.expovariate(per_second)
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            chosen = rng.randrange(len(requests))
            tasks.append(asyncio.create_task(post(client, requests[chosen], expected[chosen], load)))
        await asyncio.gather(*tasks)
    return load, time.perf_counter() - began


async def live(where: ServerProcess, count: int, seconds: float) -> list[float]:
    """Return the times from a chunk to its answer, for a number of concurrent streams."""
    audio = (np.tile(soundfile.read(NOISY)[0], 3) * 32_768).astype("<i2")
    samples = int(FRAME_S * 16_000)
    times: list[float] = []

    async def one(number: int) -> None:
        async with connect(
            where.url.replace("http", "ws") + "/v1/stream", open_timeout=60, ping_interval=None
        ) as socket:
            await socket.send(json.dumps({"type": "start", "sample_rate": 16_000}))
            await socket.recv()
            sent: list[float] = []

            async def send() -> None:
                began = time.perf_counter() + FRAME_S * number / count
                for frame in range(int(seconds / FRAME_S)):
                    await asyncio.sleep(max(0.0, began + frame * FRAME_S - time.perf_counter()))
                    start = frame * samples % (len(audio) - samples)
                    sent.append(began + frame * FRAME_S)
                    await socket.send(audio[start : start + samples].tobytes())

            sender = asyncio.create_task(send())
            for frame in range(int(seconds / FRAME_S)):
                await socket.recv()
                times.append(time.perf_counter() - sent[frame])
            await sender

    await asyncio.gather(*(one(number) for number in range(count)))
    return times


def percentiles_ms(times_s: Sequence[float]) -> dict[str, float]:
    values = np.percentile(times_s, [50, 95, 99]) if times_s else [float("nan")] * 3
    return {f"p{share}_ms": 1000 * float(value) for share, value in zip((50, 95, 99), values, strict=True)}


def measure_load(
    where: ServerProcess, requests: Sequence[Body], expected: Sequence[bytes], capacity: float, minutes: float
) -> list[dict[str, Any]]:
    rows = []
    mean_s = statistics.mean(body.audio_s for body in requests)
    for seed, load in enumerate(LOADS):
        before_mb = memory_mb(where)
        found, took_s = asyncio.run(
            open_loop(where, requests, expected, load * capacity / mean_s, 60 * minutes / len(LOADS), seed)
        )
        row = {
            "load": load,
            "offered_audio_s_per_s": load * capacity,
            "audio_s_per_s": found.audio_s / took_s,
            "requests": sum(found.statuses.values()),
            "answered": found.statuses[200],
            "told_to_come_again": found.statuses[429],
            "other": sum(n for status, n in found.statuses.items() if status not in (200, 429)),
            **percentiles_ms(found.latencies_s),
            "different": found.different,
            "largest_difference": found.largest,
            "memory_mb": [before_mb, memory_mb(where)],
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def measure_streams(where: ServerProcess, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for count in STREAM_COUNTS:
        calls, streams = (where.metric(f"frcrn_accel_stream_batch_size_{what}") for what in ("count", "sum"))
        times = asyncio.run(live(where, count, seconds))
        calls = where.metric("frcrn_accel_stream_batch_size_count") - calls
        streams = where.metric("frcrn_accel_stream_batch_size_sum") - streams
        row = {"streams": count, **percentiles_ms(times), "streams_per_call": streams / calls}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


async def alone(where: ServerProcess, requests: Sequence[Body]) -> list[bytes]:
    """Return the result of each request, sent alone."""
    async with client_of(where) as client:
        return [(await client.post("/v1/denoise", content=body.content)).content for body in requests]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="total length of the load, minutes")
    parser.add_argument("--round-s", type=float, default=20, help="length of a round of the capacity, s")
    parser.add_argument(
        "--stream-s", type=float, default=20, help="length of the measurement of each number of streams, s"
    )
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--note", default="", help="remark on the machine, shown with the figures")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    requests = bodies()
    with ExitStack() as stack:
        servers = {
            size: stack.enter_context(server(options.backend, size, options.threads)) for size in options.batch_sizes
        }
        rounds: dict[int, list[float]] = {size: [] for size in servers}
        for _ in range(ROUNDS):
            for size, where in servers.items():
                rounds[size].append(asyncio.run(closed_loop(where, requests, options.round_s)))
        first = options.batch_sizes[0]
        capacity = []
        for size, found in rounds.items():
            ratios = [one / other for one, other in zip(found, rounds[first], strict=True)]
            calls, windows = (servers[size].metric(f"frcrn_accel_batch_size_{what}") for what in ("count", "sum"))
            row = {
                "batch_size": size,
                "audio_s_per_s": statistics.median(found),
                "gain": statistics.median(ratios),
                "gain_range": [min(ratios), max(ratios)],
                "windows_per_call": windows / calls,
                "memory_mb": memory_mb(servers[size]),
            }
            capacity.append(row)
            print(json.dumps(row), flush=True)
        last = servers[options.batch_sizes[-1]]
        expected = asyncio.run(alone(last, requests))
        digests = {hashlib.sha256(content).hexdigest() for content in expected}
        assert len(digests) == len(requests)
        load = measure_load(last, requests, expected, statistics.median(rounds[first]), options.minutes)
        streams = measure_streams(last, options.stream_s)
    report = {
        "machine": describe_machine().cpu or platform.machine(),
        "note": options.note,
        "cpus": len(os.sched_getaffinity(0)),
        "backend": options.backend,
        "threads": options.threads,
        "batch_size": options.batch_sizes[-1],
        "minutes": options.minutes,
        "capacity": capacity,
        "load": load,
        "streams": streams,
    }
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
