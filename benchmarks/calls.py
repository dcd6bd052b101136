"""Run calls through the adapters for Pipecat and LiveKit, faster than real time, with frequent failures.

    python benchmarks/calls.py --minutes 30

The engine halves the audio and fails now and then: with errors, exits and NaN. The signal is a hum of 113 Hz, whose
own steps from sample to sample are known, so that a click is a step that is larger. A call has frames of 10 to
100 ms, chunks that split samples, the filter off and on, other limits of attenuation, and for LiveKit other rates.
Needs the packages pipecat-ai and livekit.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel import Denoiser, ModelMetadata
from frcrn_accel.backends import StepSession
from frcrn_accel.models import ModelFile
from frcrn_accel.pcm import from_pcm, to_pcm
from frcrn_accel.testing import FunctionBackend

__all__ = ["Call", "FailingBackend", "livekit_call", "pipecat_call"]

HUM_HZ = 113
PEAK = 10_000
_RATES = (16_000, 48_000, 24_000, 8_000)
_RATE_S = 20.0
_LIMITS = (None, 6.0, 0.0, 12.0)


class FailingBackend(FunctionBackend):
    """A backend that halves its input, and fails.

    Args:
        seed: Seed of the failures.
        every: Steps between two failures, on average.
    """

    def __init__(self, seed: int = 0, every: float = 2000) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.every = every
        self.failures = 0
        self.bad_steps = 0  # still to come

    def load_step(self, model: ModelFile, threads: int, lookahead: int = 7) -> StepSession:
        """Return a session that fails."""
        return _FailingStep(self, model.metadata)


class _FailingStep(StepSession):
    device = "numpy"

    def __init__(self, backend: FailingBackend, metadata: ModelMetadata) -> None:
        self.inputs = {"audio": (0, 0), "averaging": (0, 8, 0, 0), "state_0/lag": (0, 7 * 320 + 320)}
        self._backend = backend
        self.metadata = metadata

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        backend = self._backend
        gain = 0.5
        if backend.bad_steps or backend.rng.random() < 1 / backend.every:
            backend.bad_steps = backend.bad_steps - 1 if backend.bad_steps else int(backend.rng.integers(3))
            backend.failures += 1
            errors: list[BaseException] = [RuntimeError("x"), SystemExit(1), MemoryError(), KeyboardInterrupt()]
            kind = backend.rng.integers(len(errors) + 1)
            if kind < len(errors):
                raise errors[kind]
            gain = np.nan
        joined = np.concatenate([feeds["state_0/lag"], feeds["audio"]], axis=1)
        kept = joined.shape[1] - self.inputs["state_0/lag"][1]
        return [joined[:, :kept] * np.float32(gain), joined[:, kept:]]


@dataclass
class Call:
    """Result of a call.

    Attributes:
        seconds: Audio that was sent.
        dry_s: Audio that came out as it went in, because the filter was off, the engine had failed, or no stream was
            open.
        off_s: Of this, while the filter was off or the limit 0 dB, as set by the call.
        silent_s: Silence, before the first sample and where the delay grew.
        clicks: Steps from sample to sample that are larger than those of the signal and of a ramp of 20 ms.
        lost_samples: Samples that went in and did not come out, less those that are inside.
        failures: Steps of the engine that failed.
    """

    seconds: float = 0.0
    dry_s: float = 0.0
    off_s: float = 0.0
    silent_s: float = 0.0
    clicks: int = 0
    lost_samples: int = 0
    failures: int = 0

    def add(self, out: np.ndarray, rate_hz: int, last: float, last_rate_hz: int) -> float:
        """Add `(samples,)` that came out after a sample `last` of another rate, and return the last one."""
        steps = np.abs(np.diff(out.astype(float), prepend=last))
        self.clicks += int(steps[0] > _largest_step(last_rate_hz))
        self.clicks += int((steps[1:] > _largest_step(rate_hz)).sum())
        width = rate_hz // 100
        for first in range(0, len(out) - width + 1, width):
            peak = np.abs(out[first : first + width].astype(float)).max()
            if peak < 0.01 * PEAK:
                self.silent_s += 0.01
            elif peak > 0.9 * PEAK:
                self.dry_s += 0.01
        return float(out[-1])


def _largest_step(rate_hz: int) -> float:
    """Return the step of the hum where the denoised half of it is turned around, of a ramp, and of rounding."""
    return 1.5 * (2 * np.pi * HUM_HZ / rate_hz * PEAK) + PEAK / (0.02 * rate_hz) + 4


def _hum(samples: int, first_s: float, rate_hz: int) -> NDArray[np.int16]:
    phase = 2 * np.pi * HUM_HZ * (first_s + np.arange(samples) / rate_hz)
    hum: NDArray[np.int16] = np.rint(PEAK * np.sin(phase)).astype(np.int16)
    return hum


def pipecat_call(seconds: float, *, seed: int = 0, every: float = 2000) -> Call:
    """Run a call through `FrcrnFilter`."""
    from pipecat.frames.frames import FilterEnableFrame, FilterUpdateSettingsFrame

    from frcrn_accel.adapters.pipecat import FrcrnFilter

    rng, rate_hz, call = np.random.default_rng(seed), 16_000, Call(seconds)
    audio = _hum(round(seconds * rate_hz), 0, rate_hz)
    pcm = to_pcm(audio[None])
    backend = FailingBackend(seed, every)

    async def run() -> bytes:
        with Denoiser(backend=backend) as denoiser:
            filter_ = FrcrnFilter(denoiser, pause_s=1e9)
            await filter_.start(rate_hz)
            out, done = [], 0
            while done < len(pcm):
                size = int(rng.integers(10, 101)) * rate_hz // 1000 * 2 + int(rng.integers(2))
                out.append(await filter_.filter(pcm[done : done + size]))
                done += size
                if not filter_.enabled or filter_.attenuation_limit_db == 0:
                    call.off_s += size / 2 / rate_hz
                if rng.random() < 0.02:
                    await filter_.process_frame(FilterEnableFrame(enable=bool(rng.integers(4))))
                if rng.random() < 0.02:
                    limit = _LIMITS[rng.integers(len(_LIMITS))]
                    await filter_.process_frame(FilterUpdateSettingsFrame(settings={"attenuation_limit_db": limit}))
            await filter_.stop()
            return b"".join(out)

    found = from_pcm(asyncio.run(run()), 1)[0]
    call.lost_samples = len(audio) - len(found)
    call.failures = backend.failures
    call.add(found, rate_hz, 0.0, rate_hz)
    return call


def livekit_call(seconds: float, *, seed: int = 0, every: float = 2000) -> Call:
    """Run a call through `FrcrnProcessor`; its rate changes every 20 s."""
    from livekit.rtc import AudioFrame

    from frcrn_accel.adapters.livekit import FrcrnProcessor

    rng, call, last = np.random.default_rng(seed), Call(seconds), 0.0
    backend = FailingBackend(seed, every)
    with Denoiser(backend=backend) as denoiser:
        processor = FrcrnProcessor(denoiser)
        sizes_ms = [10, 20, 50, 60, 100]
        for part in range(math.ceil(seconds / _RATE_S)):
            rate_hz, parts = _RATES[part % len(_RATES)], []
            hum = _hum(round(min(_RATE_S, seconds - part * _RATE_S) * rate_hz), part * _RATE_S, rate_hz)
            while len(hum):
                samples = min(int(rng.choice(sizes_ms)) * rate_hz // 1000, len(hum))
                frame = AudioFrame(hum[:samples].tobytes(), rate_hz, 1, samples)
                hum = hum[samples:]
                parts.append(np.array(processor._process(frame).data))
                call.lost_samples += samples - len(parts[-1])
                if processor.bypassed or processor.attenuation_limit_db == 0:
                    call.off_s += samples / rate_hz
                processor.wait()  # fast-forward: the thread has as much time as it needs
                if rng.random() < 0.02:
                    processor.bypassed = not rng.integers(4)
                if rng.random() < 0.02:
                    processor.attenuation_limit_db = _LIMITS[rng.integers(len(_LIMITS))]
            before = _RATES[max(part - 1, 0) % len(_RATES)]
            last = call.add(np.concatenate(parts), rate_hz, last, before)
        processor._close()
    call.failures = backend.failures
    return call


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.ERROR)
    print("adapter  seconds  failures         dry, s  off, s  silent, s  clicks  samples lost  took, s")
    calls: dict[str, Callable[..., Call]] = {"pipecat": pipecat_call, "livekit": livekit_call}
    for name, run in calls.items():
        began = time.perf_counter()
        call = run(60 * options.minutes, seed=options.seed)
        took_s = time.perf_counter() - began
        print(
            f"{name:<8} {call.seconds:7.0f} {call.failures:9d} {call.dry_s:14.1f} {call.off_s:7.1f} "
            f"{call.silent_s:10.2f} {call.clicks:7d} {call.lost_samples:13d} {took_s:8.1f}"
        )


if __name__ == "__main__":
    main()
