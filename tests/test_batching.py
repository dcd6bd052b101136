"""Join the calls of many threads into one call of the engine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from frcrn_accel import Denoiser, EngineError, Session, Windowing
from frcrn_accel.batching import BatchingSession
from waiting import until


class Gated(Session):
    """A session that doubles its input; its calls wait for a gate."""

    device = "numpy"

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.shapes: list[tuple[int, ...]] = []
        self.error: Exception | None = None

    def run(self, audio: np.ndarray) -> np.ndarray:
        self.shapes.append(audio.shape)
        self.entered.release()
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return 2 * audio


def together(session: Gated, batching: BatchingSession, calls: list[np.ndarray]) -> list[object]:
    """Make calls that all wait while the engine computes the first; return their results, or errors."""

    def run(audio: np.ndarray) -> object:
        try:
            return batching.run(audio)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(run, calls[0])]
        assert session.entered.acquire(timeout=60)
        for waiting, call in enumerate(calls[1:], 1):  # one after the other, to keep the order of the list
            futures.append(pool.submit(run, call))
            until(lambda: batching.waiting, lambda found, expected=waiting: found == expected)
        session.gate.set()
        return [future.result(60) for future in futures]


def rows(count: int, samples: int = 640, value: float = 1.0) -> np.ndarray:
    return np.full((count, samples), value, np.float32)


def test_what_waits_at_the_same_time_is_one_call():
    session, sizes = Gated(), []
    batching = BatchingSession(session, 8, sizes.append)
    calls = [rows(1, value=i) for i in range(5)]
    for call, result in zip(calls, together(session, batching, calls), strict=True):
        np.testing.assert_array_equal(result, 2 * call)
    assert session.shapes == [(1, 640), (4, 640)]
    assert sizes == [1, 4]


def test_other_lengths_and_full_batches_go_apart_and_the_oldest_goes_first():
    session = Gated()
    calls = [rows(1), rows(1, 960), rows(2, value=2), rows(3, 960, 3), rows(2, value=4), rows(2, value=5), rows(7)]
    for call, result in zip(calls, together(session, BatchingSession(session, 4), calls), strict=True):
        np.testing.assert_array_equal(result, 2 * call)
    assert session.shapes == [(1, 640), (4, 960), (4, 640), (2, 640), (7, 640)]


def test_an_error_is_everybodys():
    session = Gated()
    session.error = EngineError("out of memory")
    results = together(session, BatchingSession(session, 4), [rows(1), rows(1), rows(1)])
    assert [str(error) for error in results] == ["out of memory"] * 3
    assert {type(error) for error in results} == {EngineError}
    session.error = None
    np.testing.assert_array_equal(BatchingSession(session, 4).run(rows(1)), 2 * rows(1))


def test_after_an_error_that_is_none_of_the_engine_it_goes_on():
    session = Gated()
    session.error = MemoryError("no room")
    batching = BatchingSession(session, 4)
    session.gate.set()
    with pytest.raises(MemoryError):
        batching.run(rows(1))
    session.error = None
    np.testing.assert_array_equal(batching.run(rows(1)), 2 * rows(1))


def test_each_thread_gets_the_error_of_its_own_call():
    """A failed batch does not affect the waiting calls of other lengths."""
    session = Gated()
    session.error = MemoryError("no room")
    batching = BatchingSession(session, 4)
    results = together(session, batching, [rows(1), rows(1, 960), rows(1, 1280), rows(1, 960)])
    assert [type(error) for error in results] == [MemoryError] * 4
    assert session.shapes == [(1, 640), (2, 960), (1, 1280)]
    assert batching.waiting == 0


def test_a_batch_of_none():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        BatchingSession(Gated(), 0)


def test_a_denoiser_with_it_gives_what_one_without_gives(noisy):
    """The packaged model, signals in each other's company: bit for bit."""
    pytest.importorskip("onnxruntime")
    windowing = Windowing(window_s=1.0, past_s=0.2, future_s=0.04, fade_s=0.05, fixed=True)
    signals = [noisy[5_000 * i : 5_000 * i + 30_000] for i in range(4)]
    with Denoiser(backend="ort", windowing=windowing) as alone:
        expected = [alone(signal, 16_000) for signal in signals]
    sizes: list[int] = []
    batchings: list[BatchingSession] = []

    def observe(rows: int) -> None:
        if not sizes:  # the first call waits until the others are waiting
            until(lambda: batchings[0].waiting, lambda waiting: waiting == len(signals) - rows)
        sizes.append(rows)

    def wrap(session: Session) -> Session:
        batchings.append(BatchingSession(session, 4, observe))
        return batchings[0]

    with (
        Denoiser(backend="ort", windowing=windowing, wrap_session=wrap) as shared,
        ThreadPoolExecutor(4) as pool,
    ):
        assert shared.device.startswith("CPUExecutionProvider")
        found = list(pool.map(lambda signal: shared(signal, 16_000), signals))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(sizes) >= 3
