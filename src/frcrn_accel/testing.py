"""Conformance tests for backends. Needs pytest.

Subclass `BackendConformance` in a test module, name the backend, and run pytest:

    from frcrn_accel.testing import BackendConformance

    class TestMine(BackendConformance):
        backend = MyBackend
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from frcrn_accel import (
    Backend,
    BackendUnavailable,
    Denoiser,
    ModelError,
    ModelFile,
    Session,
    UnsupportedPrecisionError,
    Windowing,
)
from frcrn_accel.backends import resolve_backend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.models import DEFAULT_MODEL, find_model
from frcrn_accel.network.seeded import random_weights
from frcrn_accel.prepare import prepare

__all__ = ["BackendConformance", "FunctionBackend", "random_weights"]


class FunctionBackend(Backend):
    """A backend that applies a function to the audio, for tests without an engine.

    Args:
        function: Takes and returns `float32 (batch, samples)`. The default returns a copy.
        precision: See `Backend`.
    """

    name: ClassVar[str] = "function"
    description: ClassVar[str] = "a plain function"
    priority: ClassVar[int] = -1

    def __init__(
        self,
        function: Callable[[NDArray[np.float32]], NDArray[np.float32]] = np.copy,
        precision: str | None = None,
    ) -> None:
        super().__init__(precision)
        self.function = function

    @classmethod
    def check(cls) -> None:
        """See `Backend.check`: a function runs everywhere."""

    def load(self, model: ModelFile, threads: int) -> Session:
        """See `Backend.load`. The model is ignored."""
        return _FunctionSession(self.function)


class _FunctionSession(Session):
    device = "numpy"

    def __init__(self, function: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self._function = function

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._function(audio)


class BackendConformance:
    """The contract of `frcrn_accel.Backend`, with the packaged model.

    Attributes:
        backend: The class under test, or an instance with options.
        reads_models: Whether it reads the model file.
        reference: Backend whose output is expected; None to leave the numbers untested.
        tolerance: Largest difference from the reference, as a share of its peak.
        repeatability: Largest difference between two runs on the same audio, as a share of the peak: 0 for engines
            that give the same bits each time.
    """

    backend: ClassVar[type[Backend] | Backend]
    reads_models: ClassVar[bool] = True
    reference: ClassVar[str | None] = None
    tolerance: ClassVar[float] = 1e-4
    repeatability: ClassVar[float] = 0.0

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> ModelFile:
        """Return the packaged model."""
        return find_model(DEFAULT_MODEL)

    @pytest.fixture(scope="class")
    @classmethod
    def instance(cls) -> Backend:
        """Return the backend, ready to load; if it cannot run here, skip the tests with its reason."""
        return _resolve_or_skip(cls.backend)

    @pytest.fixture(scope="class")
    @classmethod
    def session(cls, instance: Backend, model: ModelFile) -> Iterator[Session]:
        """Load the model once for all tests of the class, on two threads where the process has two CPUs."""
        session = instance.load(prepare(model, instance), threads=min(2, available_cpus()))
        yield session
        session.close()

    def test_it_describes_itself(self, instance: Backend) -> None:
        """It has a name, description, priority and batch size, and can run here."""
        assert instance.name
        assert "\n" not in instance.description
        assert instance.description
        assert isinstance(instance.priority, int)
        assert instance.batch_size >= 1
        assert instance.precision in instance.precisions
        instance.check()

    def test_an_unknown_precision_is_a_clear_error(self, instance: Backend) -> None:
        """It is refused, naming the supported ones, before anything is loaded."""
        with pytest.raises(UnsupportedPrecisionError, match="has no precision 'int1': it has "):
            resolve_backend(type(instance), "int1")

    def test_the_session_names_its_device(self, session: Session) -> None:
        """The session reports its device after loading."""
        assert session.device

    @pytest.mark.parametrize("batch", [1, 3])
    @pytest.mark.parametrize("frames", [1, 2, 49])
    def test_shape_and_dtype_are_kept(self, session: Session, model: ModelFile, batch: int, frames: int) -> None:
        """Any batch and number of frames gives finite float32 of the same shape in a new array."""
        audio = _noise(batch, _samples(model, frames))
        before = audio.copy()
        denoised = session.run(audio)
        assert denoised.shape == audio.shape
        assert denoised.dtype == np.float32
        assert np.isfinite(denoised).all()
        assert not np.shares_memory(denoised, audio)
        np.testing.assert_array_equal(audio, before)

    def test_silence_stays_silence(self, session: Session, model: ModelFile) -> None:
        """Zeros in, zeros out."""
        silence = np.zeros((1, _samples(model, 20)), np.float32)
        np.testing.assert_array_equal(session.run(silence), silence)

    def test_a_row_does_not_depend_on_its_batch_mates(self, session: Session, model: ModelFile) -> None:
        """A row gives the same result alone and beside a much louder one."""
        audio = _noise(2, _samples(model, 30))
        audio[1] *= 50
        together = session.run(audio)
        alone = session.run(audio[:1])
        # Rounding errors scale with the input, however much of it the model removes.
        np.testing.assert_allclose(together[0], alone[0], atol=1e-6 * np.abs(audio[0]).max())

    def test_the_same_audio_gives_the_same_result(self, session: Session, model: ModelFile) -> None:
        """Calls share no state."""
        audio = _noise(1, _samples(model, 30))
        first = session.run(audio)
        session.run(_noise(1, _samples(model, 10), seed=1))
        np.testing.assert_allclose(session.run(audio), first, rtol=0, atol=self.repeatability * np.abs(first).max())

    def test_threads_may_share_a_session(self, session: Session, model: ModelFile) -> None:
        """Four threads at once get the same results as one."""
        signals = [_noise(1, _samples(model, 20 + i), seed=i) for i in range(8)]
        expected = [session.run(signal) for signal in signals]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(session.run, signals))
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, atol=max(1e-6, self.repeatability) * np.abs(other).max())

    def test_it_agrees_with_the_reference(self, session: Session, model: ModelFile) -> None:
        """The output equals that of the reference backend."""
        if self.reference is None:
            pytest.skip("this backend has no reference")
        audio = _noise(2, _samples(model, 80))
        reference = _resolve_or_skip(self.reference)
        expected = reference.load(prepare(model, reference), threads=min(2, available_cpus())).run(audio)
        assert np.abs(session.run(audio) - expected).max() <= self.tolerance * np.abs(expected).max()

    def test_a_damaged_model_is_a_clear_error(self, instance: Backend, model: ModelFile, tmp_path: Path) -> None:
        """A file cut in half is a ModelError, not the engine's own exception."""
        if not self.reads_models:
            pytest.skip("this backend does not read the model file")
        damaged = tmp_path / "damaged.onnx"
        content = model.path.read_bytes()
        damaged.write_bytes(content[: len(content) // 2])
        with pytest.raises(ModelError, match=r"damaged\.onnx"):
            instance.load(prepare(ModelFile(damaged, model.metadata), instance), threads=1)

    def test_it_serves_a_denoiser(self, instance: Backend, model: ModelFile) -> None:
        """A denoiser takes two channels at another rate, cut into windows."""
        audio = _noise(2, 3 * 24_000)
        windowing = Windowing(window_s=1.0, past_s=0.2, future_s=0.04, fade_s=0.05)
        with Denoiser(model.path, backend=instance, threads=_one_thread(instance), windowing=windowing) as denoiser:
            denoised = denoiser(audio, 24_000)
        assert denoised.shape == audio.shape
        assert np.isfinite(denoised).all()

    def test_its_streams_do_not_depend_on_the_chunks(self, instance: Backend, model: ModelFile) -> None:
        """If it has streams: as many samples out as in, independent of the chunks, and not silent."""
        audio = _noise(1, 6_400)[0]
        results = []
        with Denoiser(model.path, backend=instance, threads=_one_thread(instance)) as denoiser:
            for size in (320, 6_400, 77):
                try:
                    stream = denoiser.stream(16_000)
                except BackendUnavailable as error:
                    pytest.skip(str(error))
                parts = [stream.process(audio[first : first + size]) for first in range(0, len(audio), size)]
                results.append(np.concatenate([*parts, stream.flush()]))
                assert results[-1].shape == (len(audio) + stream.latency_samples,)
        assert np.isfinite(results[0]).all()
        assert np.abs(results[0]).max() > 0
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0])


def _resolve_or_skip(backend: str | type[Backend] | Backend) -> Backend:
    try:
        return resolve_backend(backend)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def _one_thread(backend: Backend) -> int | None:
    """Return the option `threads` for one thread; None for a backend that does not take the option."""
    return 1 if backend.uses_threads else None


def _samples(model: ModelFile, frames: int) -> int:
    return model.metadata.frame_samples + (frames - 1) * model.metadata.hop_samples


def _noise(batch: int, samples: int, seed: int = 0) -> NDArray[np.float32]:
    return (0.05 * np.random.default_rng(seed).standard_normal((batch, samples))).astype(np.float32)
