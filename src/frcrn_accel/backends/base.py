"""What an engine must offer: the whole contract between the denoiser and the thing that computes.

A backend knows nothing of files, sample rates, levels or windows. It gets batches of `float32 (batch, samples)`
at the model's rate and level and gives the same back; the STFT is inside the model.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import BackendUnavailable, UnsupportedPrecisionError
from frcrn_accel.model.topology import LOOKAHEAD_FRAMES
from frcrn_accel.models import FP32, ModelFile, ModelMetadata

__all__ = ["Backend", "Session", "StepSession"]


class Session(abc.ABC):
    """A model that an engine has loaded and is ready to run.

    Attributes:
        device: What it really runs on, asked of the engine after loading, e.g. `"CPU, 2 threads"`.
    """

    device: str

    @abc.abstractmethod
    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a batch.

        Must be safe to call from several threads at once. Each row's result must not depend on the other rows.

        Args:
            audio: `(batch, samples)`, `samples` a multiple of the model's hop and at least its window.

        Returns:
            The denoised batch, same shape, a new array.

        Raises:
            EngineError: The engine failed.
        """

    def close(self) -> None:  # noqa: B027 - most engines free what they hold when they are dropped
        """Free what the engine holds. No call follows it."""


class StepSession(abc.ABC):
    """A step of a stream that an engine has loaded: a graph with states as further inputs and outputs.

    Attributes:
        device: See `Session`.
        metadata: What the file of the step says of itself.
        inputs: Names and shapes of what it takes, in order; 0 for an axis of any length. The first is the audio; the
            states are the last.
    """

    device: str
    metadata: ModelMetadata
    inputs: Mapping[str, tuple[int, ...]]

    @abc.abstractmethod
    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """One step. Must be safe to call from several threads at once.

        Args:
            feeds: All inputs, by name.

        Returns:
            The audio, and the states for the next step in the order of the inputs; arrays of their own.

        Raises:
            EngineError: The engine failed.
        """

    def close(self) -> None:  # noqa: B027 - as above
        """Free what the engine holds. No call follows it."""


class Backend(abc.ABC):
    """One engine, with its options. A subclass is what an entry point of the group names.

    The class must be importable, and instances made, without the engine: import the engine in `check` and `load`.
    A subclass with options of its own takes these as well and hands them to `super().__init__`.

    Args:
        precision: One of `precisions`; None for the default.
        calibration: Folder with noisy speech, to measure the ranges of a model on that has not been quantized yet.

    Attributes:
        name: The name users type.
        description: One line for tables.
        priority: `backend="auto"` takes the usable backend with the highest; negative is never chosen.
        precisions: The number formats it can compute in, the default first.
        calibrates: Whether calibration audio is of use to it.
        fixed_windows: Whether it is tuned for one length of windows: long signals are then cut into windows of just
            that length. It still takes any length.
        batch_size: Windows that one call takes at best.
        calibration: As given.

    Raises:
        UnsupportedPrecisionError: `precision` is not one of `precisions`.
        ValueError: `calibration` was given to a backend that has no use for it.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    priority: ClassVar[int] = 0
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    calibrates: ClassVar[bool] = False
    fixed_windows: ClassVar[bool] = False
    batch_size: int = 1

    def __init__(self, precision: str | None = None, calibration: str | Path | None = None) -> None:
        if calibration is not None and not self.calibrates:
            raise ValueError(f"backend {self.name!r} measures no ranges: calibration audio is of no use to it")
        self.calibration = None if calibration is None else Path(calibration)
        if precision is not None and precision not in self.precisions:
            raise UnsupportedPrecisionError(self.name, precision, self.precisions)
        self._precision = precision

    @property
    def precision(self) -> str:
        """The number format that `load` will compute in."""
        return self._precision or self.default_precision()

    def precision_for(self, model: ModelFile) -> str:
        """The number format that `load` will compute this model in: a quantized file may decide."""
        return self.precision

    @classmethod
    def default_precision(cls) -> str:
        """What `precision=None` stands for: the first of `precisions`, unless that depends on the machine."""
        return cls.precisions[0]

    @classmethod
    def priority_for(cls, model: ModelFile) -> int:
        """Its rank for a model when `backend="auto"`; negative if it is not for it."""
        return cls.priority if model.metadata.method == FP32 else -1

    @classmethod
    @abc.abstractmethod
    def check(cls) -> None:
        """Find out whether this backend can run here.

        Raises:
            BackendUnavailable: It cannot; with the reason and what to install.
        """

    @abc.abstractmethod
    def load(self, model: ModelFile, threads: int) -> Session:
        """Load a model.

        Args:
            model: The file and what it says of itself.
            threads: Number of CPU threads to compute with, 1 or more.

        Raises:
            BackendUnavailable: The engine cannot run here, or fell back to another device than this backend's.
            ModelError: The engine cannot read the file.
        """

    def load_step(self, model: ModelFile, threads: int, lookahead: int = LOOKAHEAD_FRAMES) -> StepSession:
        """Load what streams of a model run, see `load`. A backend need not have it.

        Args:
            model: See `load`.
            threads: See `load`.
            lookahead: Frames that each U-Net looks ahead.

        Raises:
            BackendUnavailable: It has no streams, or none with that look-ahead, or see `load`.
            ModelError: The engine cannot read the file.
        """
        raise BackendUnavailable(self.name, "it does not run streams", "use backend 'ort' or 'openvino' for them")
