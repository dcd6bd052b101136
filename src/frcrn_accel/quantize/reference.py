"""The outputs, computing times and scores of the source model on the gate audio."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import Backend, Session
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.models import ModelFile, loaded_once
from frcrn_accel.quality import Scorer, dnsmos, pesq_wb
from frcrn_accel.quality.clips import Clip
from frcrn_accel.quantize.parallel import Threads, plan_threads
from frcrn_accel.quantize.recordings import denoise_clip

__all__ = ["DNSMOS", "PESQ", "Output", "Reference", "denoise_timed", "load_parallel", "rate", "warm_up"]

PESQ = "PESQ-WB"
DNSMOS = "DNSMOS OVRL"

Output = tuple[NDArray[np.float32], float]
"""A denoised clip, `(samples,)`, and the computing time in seconds."""

_WARM_UP_S = 1.0


class Reference:
    """The outputs and scores of the source. Each is computed once, when it is first needed, by any thread.

    All candidates are compared with the same reference.

    Args:
        model: The fp32 model; it runs on ONNX Runtime.
        clips: Speech in noise. PESQ needs clips with clean speech.

    Attributes:
        scorer: Notes which metrics are not installed.
        threads: How many clips to run at once.
        places: One for each of them. What is timed takes a place, and so does what would otherwise slow it down.
        device: Backend and device; "" before the first output.
    """

    def __init__(self, model: ModelFile, clips: Sequence[Clip]) -> None:
        self.model = model
        self.clips = clips
        self.scorer = Scorer()
        self.threads = plan_threads([len(clip.noisy) for clip in clips])
        self.places = threading.BoundedSemaphore(self.threads.clips)
        self.device = ""
        self._session: Session | None = None
        self._session_lock = threading.Lock()
        self._locks = [threading.Lock() for _ in clips]
        self._score_locks = {
            (metric, number): threading.Lock() for metric in (PESQ, DNSMOS) for number in range(len(clips))
        }
        self._outputs: dict[int, Output] = {}
        self._scores: dict[tuple[str, int], float | None] = {}

    def begin(self, pool: ThreadPoolExecutor) -> list[Future[Output]]:
        """Compute all outputs that are missing in other threads."""
        return [pool.submit(self.output, number) for number in range(len(self.clips))]

    def output(self, number: int) -> Output:
        """Return the output for a clip.

        Raises:
            BackendUnavailable: ONNX Runtime is not installed.
            EngineError: The engine failed, or its output is not finite.
        """
        with self._locks[number]:
            if number not in self._outputs:
                session = self._loaded()
                with self.places:
                    self._outputs[number] = denoise_timed(self.clips[number], session, self.model)
                with self._session_lock:
                    if len(self._outputs) == len(self.clips) and self._session is not None:
                        self._session.close()
                        self._session = None
        return self._outputs[number]

    def score(self, metric: str, number: int) -> float | None:
        """Return the score of the output for a clip; None if it has none, see `Scorer`."""
        with self._score_locks[metric, number]:
            if (metric, number) not in self._scores:
                output, _ = self.output(number)
                self._scores[metric, number] = rate(metric, self.clips[number], output, self.scorer)
        return self._scores[metric, number]

    def _loaded(self) -> Session:
        with self._session_lock:
            if self._session is None:
                self._session = load_session(OrtBackend(), self.model, self.threads.each)
                self.device = f"{OrtBackend.name}: {self._session.device}"
                warm_up(self.clips[0], self._session, self.model)
            return self._session


def rate(metric: str, clip: Clip, output: NDArray[np.float32], scorer: Scorer) -> float | None:
    """Score a model's output for a clip; return None if there is no score, see `Scorer`."""
    if metric == DNSMOS:
        return scorer.score(metric, lambda: dnsmos(output).ovrl)
    return None if clip.clean is None else scorer.score(metric, partial(pesq_wb, clip.clean, output))


def load_session(backend: Backend, model: ModelFile, threads: int) -> Session:
    """Load a model, after checking that the backend can run here."""
    backend.check()
    return backend.load(model, threads)


def load_parallel(engine: Backend, candidate: ModelFile, threads: Threads) -> Session:
    """Load a candidate to run several clips at once. What the engine compiles is not cached: it is not used again."""
    engine.concurrent_runs = threads.clips
    with loaded_once():
        return load_session(engine, candidate, threads.each)


def warm_up(clip: Clip, session: Session, model: ModelFile) -> None:
    """Run a second of a clip: the first run also prepares the engine."""
    samples = round(_WARM_UP_S * model.metadata.sample_rate_hz)
    denoise_clip(replace(clip, noisy=clip.noisy[:samples]), session, model.metadata)


def denoise_timed(clip: Clip, session: Session, model: ModelFile) -> Output:
    """Denoise a clip, and measure the time."""
    began = time.perf_counter()
    denoised = denoise_clip(clip, session, model.metadata)
    return denoised, time.perf_counter() - began
