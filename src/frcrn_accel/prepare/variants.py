"""Find or make the file that a backend runs for a whole signal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from frcrn_accel.backends import Backend
from frcrn_accel.errors import BackendUnavailable, MissingExtraError, ModelError, install_hint
from frcrn_accel.models import (
    FP32,
    Form,
    ModelFile,
    cached_variant,
    read_weights,
    ready_variant,
    variant_key,
)
from frcrn_accel.progress import Progress, no_progress

if TYPE_CHECKING:
    from frcrn_accel.quantize import Source

__all__ = ["cached_form", "find_variant", "make_variant", "packages_for", "prepare"]

log = logging.getLogger(__name__)


def prepare(model: ModelFile, backend: Backend, progress: Progress = no_progress) -> ModelFile:
    """Return the file that a backend runs for a model, see `Backend.recipe`.

    A file that must be made is cached. Quantizing takes minutes, and the result has to pass the quality gate.

    Args:
        model: The model that the user chose.
        backend: The backend that will load the file.
        progress: Called while a file is made.

    Raises:
        ModelError: The model is quantized with another method, or needs calibration audio.
        QualityError: The quality gate refused the quantized model.
        QuantizeError, AudioError: The calibration audio is not usable.
        BackendUnavailable: Packages needed to make the file are missing.
    """
    recipe = backend.recipe(model)
    if recipe.form is not None:
        return cached_form(model, recipe.form, backend.name, progress)
    if recipe.method == model.metadata.method and recipe.calibration is None:
        return model
    return find_variant(model, recipe.method, recipe.calibration, backend.name, progress)


def find_variant(
    model: ModelFile, method: str, calibration: Path | None, backend: str, progress: Progress = no_progress
) -> ModelFile:
    """Return a quantized file of a model: one that exists already, or a new one that passed the quality gate.

    Args:
        model: An fp32 model file, or one that was quantized with the method.
        method: One of `quantize.METHODS`.
        calibration: Folder of noisy speech, for a method that needs calibration.
        backend: Name of the backend, for errors.
        progress: Called while a file is made.

    Raises:
        Exception: See `prepare`.
    """
    if model.metadata.method not in (FP32, method):
        raise ModelError(
            f"{str(model.path)!r} was quantized with method {model.metadata.method!r}, and backend {backend!r} runs "
            f"{method!r}: quantize the fp32 file again, or choose the backend for this one"
        )
    if calibration is None:
        ready = ready_variant(model, method)
        if ready is not None:
            return ready
    elif model.metadata.method == method:
        raise ModelError(f"{str(model.path)!r} is calibrated already: leave calibration out")
    from frcrn_accel.quantize import METHODS

    ModelFile.open(model.path)  # report a damaged file before anything else
    if METHODS[method].needs_calibration and calibration is None:
        raise ModelError(
            f"{model.metadata.name!r} has not been calibrated for backend {backend!r}: give a folder of noisy speech "
            f"with calibration=, or run 'frcrn-accel quantize {model.path} OUT.onnx --method {method} --calibration "
            f"DIR' once and give OUT.onnx as the model"
        )
    with packages_for(backend, "the model is not quantized yet"):
        return make_variant(model, method, calibration=calibration, progress=progress)


def make_variant(
    model: ModelFile,
    method: str,
    *,
    calibration: Path | None = None,
    gated: bool = True,
    source: Source | None = None,
    progress: Progress = no_progress,
) -> ModelFile:
    """Quantize an fp32 model into the cache, or return the cached result of the same call.

    Args:
        model: An fp32 model file.
        method: One of `quantize.METHODS`.
        calibration: Folder of noisy speech, for a method that needs calibration; None for the audio in the package.
        gated: Whether the result has to pass the quality gate; benchmarks skip it.
        source: The model together with the data that several methods share; None for a single method.
        progress: Called while the file is made.

    Raises:
        Exception: See `quantize.quantize_model`.
    """
    from frcrn_accel.quality.clips import read_clips
    from frcrn_accel.quantize import CALIBRATION_AUDIO, METHODS, GateThresholds, quantize_model
    from frcrn_accel.quantize.recordings import digest_of

    digest = ""
    if calibration is not None:
        digest = digest_of(read_clips(calibration, model.metadata.sample_rate_hz))
    elif METHODS[method].needs_calibration:
        calibration = CALIBRATION_AUDIO
    key = variant_key(method, digest) if gated else {"method": method, "gate": "none, for benchmarks"}

    def build(path: Path) -> None:
        log.info("quantizing %s with method %r; this is done once and can take minutes", model.metadata.name, method)
        report = quantize_model(
            source or model.path,
            path,
            method,
            calibration=calibration,
            gate=GateThresholds() if gated else None,
            overwrite=True,
            progress=lambda what, done, total: progress(f"{method}: {what}", done, total),
        )
        if report.kept_float:
            log.info("the quality gate passed with %s left in float", ", ".join(report.kept_float))

    return cached_variant(model, key, build)


def cached_form(model: ModelFile, form: Form, backend: str, progress: Progress = no_progress) -> ModelFile:
    """Return an fp32 model with its graph in another form, from the cache if it was made before.

    Args:
        model: An fp32 model file.
        form: See `graph.forms.build_graph`.
        backend: Name of the backend, for errors.
        progress: Called while the file is made.

    Raises:
        ModelError: The file does not hold the original weights.
        BackendUnavailable: Packages needed to write the graph are missing.
    """
    key = {"form": form}

    def build(path: Path) -> None:
        from frcrn_accel.graph.forms import build_graph

        progress("write the graph", 0, 1)
        metadata = replace(model.metadata, form=form)
        weights = read_weights(model.path)
        graph = build_graph(weights, metadata.name, metadata.library_version, metadata.to_properties(), form)
        path.write_bytes(graph.SerializeToString())
        progress("write the graph", 1, 1)

    with packages_for(backend, "it runs another form of the graph"):
        return cached_variant(model, key, build)


@contextmanager
def packages_for(backend: str, why: str) -> Iterator[None]:
    """Turn the error about a missing package, needed to make a file, into `BackendUnavailable`.

    Args:
        backend: Name of the backend.
        why: Why a file has to be made, as a clause.
    """
    try:
        yield
    except (MissingExtraError, ImportError) as error:
        cause = error.__cause__ if isinstance(error, MissingExtraError) else error
        raise BackendUnavailable(
            backend, f"{why}, and packages are missing to make the file ({cause})", install_hint("quantize")
        ) from error
