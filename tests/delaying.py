"""A backend whose streams return their input, with the delay of the packaged model."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from frcrn_accel import ModelMetadata
from frcrn_accel.backends import StepSession
from frcrn_accel.models import ModelFile
from frcrn_accel.testing import FunctionBackend

__all__ = ["DelayingBackend"]


class DelayingBackend(FunctionBackend):
    """A backend that computes while its gate is open.

    Attributes:
        gain: Factor of its output.
        gate: Steps wait for it.
        entered: Set by each step.
        broken: Return NaN.
        error: Raised by each step; None to compute.
    """

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.broken = False
        self.error: BaseException | None = None

    def load_step(self, model: ModelFile, threads: int, lookahead: int = 7) -> StepSession:
        return _DelayingStep(self, model.metadata)


class _DelayingStep(StepSession):
    device = "numpy"
    inputs: ClassVar = {"audio": (0, 0), "averaging": (0, 8, 0, 0), "state_0/lag": (0, 7 * 320 + 320)}

    def __init__(self, backend: DelayingBackend, metadata: ModelMetadata) -> None:
        self._backend = backend
        self.metadata = metadata

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self._backend.entered.set()
        assert self._backend.gate.wait(60)
        if self._backend.error is not None:
            raise self._backend.error
        joined = np.concatenate([feeds["state_0/lag"], feeds["audio"]], axis=1)
        kept = joined.shape[1] - self.inputs["state_0/lag"][1]
        gain = np.float32(np.nan if self._backend.broken else self._backend.gain)
        return [joined[:, :kept] * gain, joined[:, kept:]]
