"""A backend that was written against version 0.1.0 works unchanged."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from frcrn_accel import Backend, BackendUnavailable, Denoiser, ModelFile, Session
from frcrn_accel.testing import BackendConformance


class QuieterSession(Session):
    """Multiplies by the share of a frame that is new: half of it."""

    def __init__(self, window_samples: int, hop_samples: int, device: str) -> None:
        assert (window_samples, hop_samples) == (640, 320)
        self._gain = np.float32(hop_samples / window_samples)
        self.device = device

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._gain * audio


class QuieterBackend(Backend):
    """All that 0.1.0 asked for: names, a check, and `load` with the model's own file."""

    name: ClassVar[str] = "quieter"
    description: ClassVar[str] = "halves the audio"
    priority: ClassVar[int] = -1
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    batch_size = 4

    @classmethod
    def check(cls) -> None:
        """Do nothing: it runs everywhere."""

    def load(self, model: ModelFile, threads: int) -> Session:
        device = f"CPU, {self.precision}, {threads} threads"
        return QuieterSession(model.metadata.window_samples, model.metadata.hop_samples, device)


class TestConformance(BackendConformance):
    backend = QuieterBackend
    reads_models = False


@pytest.mark.parametrize(("precision", "expected"), [(None, "fp32"), ("fp16", "fp16")])
def test_it_denoises(noisy, precision, expected):
    with Denoiser(backend=QuieterBackend, precision=precision, threads=3) as denoiser:
        assert (denoiser.backend, denoiser.precision) == ("quieter", expected)
        assert denoiser.device == f"CPU, {expected}, 3 threads"
        np.testing.assert_allclose(denoiser(noisy, 16_000), 0.5 * noisy, atol=1e-6)


def test_an_instance_with_options(noisy):
    with Denoiser(backend=QuieterBackend(precision="fp16")) as denoiser:
        np.testing.assert_allclose(denoiser(noisy, 16_000), 0.5 * noisy, atol=1e-6)


def test_it_has_no_streams():
    with (
        Denoiser(backend=QuieterBackend) as denoiser,
        pytest.raises(BackendUnavailable, match="it does not run streams"),
    ):
        denoiser.stream(16_000)
