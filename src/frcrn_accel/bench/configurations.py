"""What there is to measure: every usable backend in every precision, on the files that they run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from frcrn_accel.backends import BackendStatus, backend_statuses, resolve_backend
from frcrn_accel.errors import BenchError, FrcrnAccelError, MissingExtraError, install_hint
from frcrn_accel.models import (
    DEFAULT_MODEL,
    FP32,
    ModelFile,
    find_model,
    imported_names,
    ready_variant,
)
from frcrn_accel.network.seeded import random_weights
from frcrn_accel.network.topology import Config
from frcrn_accel.prepare import make_variant
from frcrn_accel.progress import Progress, no_progress

__all__ = ["BenchModel", "LeftOut", "Variant", "find_variants", "model_to_measure", "released_size_model"]

RELEASED_MODEL = "frcrn-16k"
_INT8 = "int8"


@dataclass(frozen=True)
class BenchModel:
    """A model to measure with.

    Attributes:
        file: The file.
        random_weights: Whether its weights are random: it has speed but no sound.
    """

    file: ModelFile
    random_weights: bool = False


@dataclass(frozen=True)
class Variant:
    """One way to run one model.

    Attributes:
        name: `BACKEND`, or `BACKEND:PRECISION` for a backend that has several.
        backend: Name of the backend.
        precision: What it is asked to compute in; None for what the file says.
        file: The file it runs; what the backend makes of it at its first use is its own affair.
    """

    name: str
    backend: str
    precision: str | None
    file: ModelFile


@dataclass(frozen=True)
class LeftOut:
    """One that is not measured.

    Attributes:
        variant: Its name, of a variant or of a backend.
        reason: Why, and what to do about it.
    """

    variant: str
    reason: str


def model_to_measure(model: str) -> BenchModel:
    """Find a model by its name or path.

    Raises:
        ModelError: There is none.
    """
    return BenchModel(find_model(model))


def released_size_model(folder: Path) -> BenchModel:
    """A network of the released size: the released one if it was imported, else one with seeded random weights.

    Args:
        folder: Where the second is put.

    Raises:
        MissingExtraError: It takes the ONNX package to make one.
    """
    if RELEASED_MODEL in imported_names():
        return model_to_measure(RELEASED_MODEL)
    try:
        from frcrn_accel.graph.forms import build_graph
    except ImportError as error:
        raise MissingExtraError("A model of the released size", "quantize", error) from error
    config = Config()
    metadata = dataclasses.replace(
        find_model(DEFAULT_MODEL).metadata,
        name="released-size",
        checkpoint_sha256="0" * 64,
        channels=config.channels,
        unets=config.unets,
    )
    graph = build_graph(random_weights(config), metadata.name, metadata.library_version, metadata.to_properties())
    path = folder / f"{metadata.name}.onnx"
    path.write_bytes(graph.SerializeToString(deterministic=True))  # what is made of it is found again by its digest
    return BenchModel(ModelFile(path, metadata), random_weights=True)


def find_variants(
    model: BenchModel, wanted: Sequence[str] | None = None, progress: Progress = no_progress
) -> tuple[list[Variant], list[LeftOut]]:
    """The variants of a model, and those that there could be elsewhere.

    INT8 files that are not there are made, with the calibration audio in the package and without the quality gate,
    and kept for the next time: where nothing but a benchmark looks for them.

    Args:
        model: What to run.
        wanted: Names of variants, or of backends for all of theirs; None for all that can run here.
        progress: Told before a file is made.

    Raises:
        UnknownBackendError: No backend of a name is installed.
        UnsupportedPrecisionError: A backend does not have that precision.
        BackendUnavailable: One that is wanted cannot run here.
        BenchError: No variant is left.
    """
    statuses = {status.name: status for status in backend_statuses(model.file)}
    if wanted is None and not any(status.usable for status in statuses.values()):
        raise BenchError(f"no backend can run: {install_hint('ort')} brings one for every CPU")
    if wanted is None:
        unusable = [status for status in statuses.values() if status.problem is not None]
        left_out = [LeftOut(status.name, f"{status.problem}") for status in unusable]
        pairs = [
            (status, precision)
            for status in statuses.values()
            if status.usable and not (model.file.metadata.method != FP32 and status.priority < 0)
            for precision in _precisions(status, model)
        ]
    else:
        left_out, pairs = [], []
        for name in dict.fromkeys(wanted):
            backend, _, precision = name.partition(":")
            resolve_backend(backend, precision or None)  # for its errors
            status = statuses[backend]
            pairs += [(status, precision)] if precision else [(status, own) for own in _precisions(status, model)]
    variants = []
    for status, chosen in dict.fromkeys(pairs):
        name = f"{status.name}:{chosen}" if chosen is not None and len(status.precisions) > 1 else status.name
        try:
            file = model.file if chosen != _INT8 else _int8_file(model.file, status.name, progress)
            variants.append(Variant(name, status.name, chosen, file))
        except FrcrnAccelError as error:
            left_out.append(LeftOut(name, str(error)))
    if not variants:
        reasons = "; ".join(one.reason for one in left_out) or "no backend is for it"
        raise BenchError(f"nothing can run {model.file.metadata.name!r} here: {reasons}")
    return variants, left_out


def _precisions(status: BackendStatus, model: BenchModel) -> Sequence[str | None]:
    """Those that a backend can run a model in; None leaves it to the file, which is quantized for one."""
    return status.precisions if model.file.metadata.method == FP32 else (None,)


def _int8_file(model: ModelFile, backend: str, progress: Progress) -> ModelFile:
    """Return the file that a backend runs in INT8, quantized now if necessary."""
    method = resolve_backend(backend, _INT8).recipe(model).method
    if method == model.metadata.method:
        return model
    return ready_variant(model, method) or make_variant(model, method, gated=False, progress=progress)
