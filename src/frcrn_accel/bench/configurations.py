"""Find what can be measured: every usable backend in each precision, with the file that it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frcrn_accel.backends import BackendStatus, backend_statuses, resolve_backend
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.errors import BenchError, FrcrnAccelError, MissingExtraError, install_hint
from frcrn_accel.export import write_random_model
from frcrn_accel.models import FP32, ModelFile, find_model, imported_names, ready_variant
from frcrn_accel.network.topology import Config
from frcrn_accel.prepare import make_variant
from frcrn_accel.progress import Progress, no_progress

__all__ = [
    "BenchModel",
    "Configuration",
    "LeftOut",
    "configuration_name",
    "find_configurations",
    "model_to_measure",
    "released_size_model",
]

RELEASED_MODEL = "frcrn-16k"
_INT8 = "int8"


@dataclass(frozen=True)
class BenchModel:
    """A model to measure.

    Attributes:
        file: The model file.
        random_weights: Whether its weights are random: it has a speed, but its output is meaningless.
    """

    file: ModelFile
    random_weights: bool = False


@dataclass(frozen=True)
class Configuration:
    """A backend with a precision and the file that it runs.

    Attributes:
        name: `BACKEND`, or `BACKEND:PRECISION` for a backend that has several.
        backend: Name of the backend.
        precision: Precision that is asked for; None to leave it to the file.
        file: The file that is given to the backend.
        uses_threads: Whether the backend computes on the CPU.
        computes_batches: Whether the backend computes several windows in one call.
    """

    name: str
    backend: str
    precision: str | None
    file: ModelFile
    uses_threads: bool = True
    computes_batches: bool = True

    def options(self, threads: int | None, batch_size: int | None = None) -> DenoiserOptions:
        """Return the options of a denoiser with this configuration.

        Args:
            threads: CPU threads; ignored for a backend that does not compute on the CPU.
            batch_size: Windows in one call; None for what suits the backend.
        """
        return DenoiserOptions(
            model=str(self.file.path),
            backend=self.backend,
            precision=self.precision,
            threads=threads if self.uses_threads else None,
            batch_size=batch_size,
        )


@dataclass(frozen=True)
class LeftOut:
    """A configuration, or a whole backend, that is not measured.

    Attributes:
        configuration: Name of the configuration or the backend.
        reason: Why it is not measured, and what to do about it.
    """

    configuration: str
    reason: str


def model_to_measure(model: str) -> BenchModel:
    """Find a model by its name or path.

    Raises:
        ModelError: It does not exist, or is damaged.
    """
    return BenchModel(find_model(model))


def released_size_model(folder: Path) -> BenchModel:
    """Return a model of the released size: the released one if it was imported, else one with seeded random weights.

    Args:
        folder: Folder to write the random one to.

    Raises:
        MissingExtraError: The packages to write a model file are not installed.
    """
    if RELEASED_MODEL in imported_names():
        return model_to_measure(RELEASED_MODEL)
    name = "released-size"
    try:
        return BenchModel(write_random_model(folder / f"{name}.onnx", Config(), name), random_weights=True)
    except ImportError as error:
        raise MissingExtraError("A model of the released size", "quantize", error) from error


def find_configurations(
    model: BenchModel, wanted: Sequence[str] | None = None, progress: Progress = no_progress
) -> tuple[list[Configuration], list[LeftOut]]:
    """Find the configurations of a model that can be measured here, and those that cannot.

    Missing INT8 files are made with the calibration audio in the package, without the quality gate, and cached where
    only benchmarks look for them.

    Args:
        model: The model.
        wanted: Names of configurations; that of a backend stands for all of its own. None for all that can run here.
        progress: Called while files are made.

    Raises:
        UnknownBackendError: A backend in `wanted` is not installed.
        UnsupportedPrecisionError: A backend in `wanted` does not have that precision.
        BackendUnavailable: A backend in `wanted` cannot run here.
        BenchError: No configuration is left.
    """
    statuses = {status.name: status for status in backend_statuses(model.file)}
    left_out: list[LeftOut] = []
    if wanted is None:
        left_out = [LeftOut(name, str(status.problem)) for name, status in statuses.items() if not status.usable]
        if len(left_out) == len(statuses):
            raise BenchError(f"no backend can run: {install_hint('ort')} installs one that runs on every CPU")
        wanted = [name for name, status in statuses.items() if status.usable and _suits(status, model)]
    found: dict[str, Configuration] = {}
    for backend, precision in _choices(wanted, statuses, model):
        name = configuration_name(backend, precision, statuses[backend].precisions)
        try:
            found[name] = _configuration(name, backend, precision, model.file, progress)
        except FrcrnAccelError as error:
            left_out.append(LeftOut(name, str(error)))
    if not found:
        reasons = "; ".join(each.reason for each in left_out) or "no backend runs this kind of file"
        raise BenchError(f"nothing can run {model.file.metadata.name!r} here: {reasons}")
    return list(found.values()), left_out


def configuration_name(backend: str, precision: str | None, precisions: Sequence[str]) -> str:
    """Return `BACKEND:PRECISION`, or `BACKEND` alone if it has a single precision or the file decides it.

    Args:
        backend: Name of the backend.
        precision: Number format; None to leave it to the file.
        precisions: All number formats of the backend.
    """
    return f"{backend}:{precision}" if precision is not None and len(precisions) > 1 else backend


def _suits(status: BackendStatus, model: BenchModel) -> bool:
    """Return whether a backend runs the model's kind of file; a quantized file is made for certain backends."""
    return model.file.metadata.method == FP32 or status.priority >= 0


def _choices(
    wanted: Sequence[str], statuses: dict[str, BackendStatus], model: BenchModel
) -> list[tuple[str, str | None]]:
    """Return the backend and the precision of each configuration, without repetition.

    Raises:
        FrcrnAccelError: See `find_configurations`.
    """
    choices: list[tuple[str, str | None]] = []
    for name in wanted:
        asked, _, precision = name.partition(":")
        backend = resolve_backend(asked, precision or None, model=model.file).name  # raises if the name is wrong
        if precision:
            choices.append((backend, precision))
        elif model.file.metadata.method == FP32:
            choices += [(backend, each) for each in statuses[backend].precisions]
        else:
            choices.append((backend, None))  # a quantized file has a precision of its own
    return list(dict.fromkeys(choices))


def _configuration(
    name: str, backend: str, precision: str | None, model: ModelFile, progress: Progress
) -> Configuration:
    """Return a configuration with its file; an INT8 file is made if it is missing."""
    engine = resolve_backend(backend, precision)
    file = model
    if precision == _INT8:
        method = engine.recipe(model).method
        if method != model.metadata.method:
            file = ready_variant(model, method) or make_variant(model, method, gated=False, progress=progress)
    return Configuration(name, backend, precision, file, engine.uses_threads, engine.computes_batches)
