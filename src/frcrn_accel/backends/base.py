"""The contract of an engine: everything between the denoiser and the code that computes.

A backend knows nothing about audio files, sample rates, levels or windows. It gets batches of
`float32 (batch, samples)` at the model's rate and level and returns the same; the STFT is inside the model. Nor does
it make model files: it declares which one it runs (`Backend.recipe`), and loads the file that it is given.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import BackendUnavailable, ModelError, UnsupportedPrecisionError
from frcrn_accel.models import FP32, ModelFile, ModelMetadata, Recipe
from frcrn_accel.network.topology import LOOKAHEAD_FRAMES

__all__ = ["Backend", "Session", "StepSession", "count_of_threads"]


class Session(abc.ABC):
    """A model that an engine has loaded and is ready to run.

    Attributes:
        device: Device that it runs on, as reported by the engine after loading, e.g. `"CPU, 2 threads"`.
    """

    device: str

    @abc.abstractmethod
    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a batch.

        Several threads may call this at once. The result of a row must not depend on the other rows.

        Args:
            audio: `(batch, samples)`; `samples` is a multiple of the model's hop and at least one STFT frame.

        Returns:
            The denoised batch, same shape, in a new array.

        Raises:
            EngineError: The engine failed.
        """

    def close(self) -> None:  # noqa: B027 - most engines free their memory when they are dropped
        """Free the engine's resources. The session is not used afterwards."""


class StepSession(abc.ABC):
    """One step of a stream that an engine has loaded: a graph with states as additional inputs and outputs.

    Attributes:
        device: See `Session`.
        metadata: Metadata of the step's file.
        inputs: Names and shapes of its inputs, in order; 0 for an axis of any length. The first is the audio, the
            states are the last.
    """

    device: str
    metadata: ModelMetadata
    inputs: Mapping[str, tuple[int, ...]]

    @abc.abstractmethod
    def run(self, feeds: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Compute one step. Several threads may call this at once.

        Args:
            feeds: All inputs, by name.

        Returns:
            The audio, and the states for the next step in the order of the inputs, in new arrays.

        Raises:
            EngineError: The engine failed.
        """

    def close(self) -> None:  # noqa: B027 - as above
        """Free the engine's resources. The session is not used afterwards."""


class Backend(abc.ABC):
    """One engine, with its options. Entry points of the group `frcrn_accel.backends` name subclasses.

    The class must be importable, and instances constructible, without the engine: import the engine in `check` and
    `load`. A subclass with options of its own also takes the two below and passes them to `super().__init__`.

    Args:
        precision: One of `precisions`; None for the default.
        calibration: Folder of noisy speech used to calibrate a model that has not been quantized yet.

    Attributes:
        name: Name that users type.
        description: One line for tables.
        priority: `backend="auto"` picks the usable backend with the highest value; negative is never picked.
        precisions: Number formats that it computes in, the default first.
        methods: Methods of quantization whose model files it runs as they are, see `quantize.METHODS`.
        calibrates: Whether it has a precision that needs calibration audio.
        on_gpu: Whether it computes on a GPU.
        uses_threads: Whether the number of CPU threads makes a difference.
        computes_batches: Whether one call computes several windows together.
        fixed_windows: Whether it is tuned for one window length: long signals are then cut into windows of exactly
            that length. It must still accept any length.
        batch_size: Windows per call that suit it best.
        concurrent_runs: Calls of `Session.run` to compute at once, each with the threads that `load` is given. Set it
            before `load`; engines that compute in the calling thread can ignore it.
        calibration: As given.

    Raises:
        UnsupportedPrecisionError: `precision` is not one of `precisions`.
        ValueError: `calibration` was given to a backend that does not calibrate.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    priority: ClassVar[int] = 0
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    methods: ClassVar[frozenset[str]] = frozenset({FP32})
    calibrates: ClassVar[bool] = False
    on_gpu: ClassVar[bool] = False
    uses_threads: ClassVar[bool] = True
    computes_batches: ClassVar[bool] = True
    fixed_windows: ClassVar[bool] = False
    batch_size: int = 1
    concurrent_runs: int = 1

    def __init__(self, precision: str | None = None, calibration: str | Path | None = None) -> None:
        if calibration is not None and not self.calibrates:
            raise ValueError(f"backend {self.name!r} does not calibrate: leave calibration out")
        self.calibration = None if calibration is None else Path(calibration)
        if precision is not None and precision not in self.precisions:
            raise UnsupportedPrecisionError(self.name, precision, self.precisions)
        self._precision = precision

    @property
    def precision(self) -> str:
        """Number format that `load` computes in."""
        return self._precision or self.default_precision()

    def precision_for(self, model: ModelFile) -> str:
        """Return the number format that `load` computes this model in: a quantized file may decide it."""
        return self.precision

    @classmethod
    def default_precision(cls) -> str:
        """Return what `precision=None` means: the first of `precisions`, unless it depends on the machine."""
        return cls.precisions[0]

    @classmethod
    def priority_for(cls, model: ModelFile) -> int:
        """Return the priority for a model under `backend="auto"`; negative if the backend must not be picked."""
        return cls.priority if model.metadata.method in cls.methods else -1

    @classmethod
    @abc.abstractmethod
    def check(cls) -> None:
        """Check that this backend can run here.

        Raises:
            BackendUnavailable: It cannot; with the reason and what to install.
        """

    def recipe(self, model: ModelFile) -> Recipe:
        """Return which file this backend runs for a model; by default the model file as it is.

        Args:
            model: The model that the user chose.

        Raises:
            BackendUnavailable: The backend cannot run the model here.
            ModelError: The backend does not run files that are quantized like this one.
        """
        return Recipe(method=model.metadata.method)

    def step_recipe(self, model: ModelFile, lookahead_frames: int) -> Recipe:
        """Return which file this backend runs for streams of a model; by default the model file as it is.

        Args:
            model: The model that the user chose.
            lookahead_frames: Frames that each U-Net looks ahead.

        Raises:
            BackendUnavailable: The backend does not run streams, or not in this precision.
            ModelError: The backend does not run files that are quantized like this one.
        """
        return Recipe(method=model.metadata.method)

    @abc.abstractmethod
    def load(self, model: ModelFile, threads: int) -> Session:
        """Load a file.

        Args:
            model: The file that `recipe` asked for.
            threads: Number of CPU threads to compute with, 1 or more.

        Raises:
            BackendUnavailable: The engine cannot run here, or fell back to a device that is not this backend's.
            ModelError: The engine cannot read the file.
        """

    def load_step(self, model: ModelFile, threads: int, lookahead: int = LOOKAHEAD_FRAMES) -> StepSession:
        """Load the step that streams of a model run. A backend need not support streams.

        Args:
            model: The file that `step_recipe` asked for.
            threads: See `load`.
            lookahead: Frames that each U-Net looks ahead, for backends that take the model file as it is; the file
                of a recipe with `lookahead_frames` is built for them.

        Raises:
            BackendUnavailable: The backend does not run streams, or not with this look-ahead; or see `load`.
            ModelError: The engine cannot read the file.
        """
        raise BackendUnavailable(self.name, "it does not run streams", "use backend 'ort' or 'openvino' for them")

    def check_method(self, model: ModelFile) -> None:
        """Check that this backend runs files that are quantized like this one.

        Raises:
            ModelError: It does not run them.
        """
        method = model.metadata.method
        if method not in self.methods:
            raise ModelError(
                f"{str(model.path)!r} is quantized with method {method!r}, and backend {self.name!r} does not run "
                "such files: choose the backend for that method, or 'auto'"
            )


def count_of_threads(threads: int) -> str:
    """Return a number of threads in words, for the name of a device and for messages.

    >>> count_of_threads(1), count_of_threads(2)
    ('1 thread', '2 threads')
    """
    return f"{threads} thread" + ("" if threads == 1 else "s")
