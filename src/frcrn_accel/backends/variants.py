"""Quantized variants of a model, for the backends that run them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from frcrn_accel.backends.base import StepSession
from frcrn_accel.errors import BackendUnavailable, MissingExtraError, ModelError, install_hint
from frcrn_accel.models import (
    FP32,
    STREAM,
    ModelFile,
    ModelMetadata,
    cached_variant,
    find_cached,
    packaged_variant,
    usual_lookahead,
)

if TYPE_CHECKING:
    import onnx

    from frcrn_accel.export.frcrn import Form

__all__ = ["OpenStep", "find_form", "find_int8_step", "find_step", "find_variant", "ready_variant", "variant_key"]

OpenStep = Callable[[ModelFile], StepSession]

log = logging.getLogger("frcrn_accel")


def ready_variant(model: ModelFile, method: str) -> ModelFile | None:
    """A variant that is there: the model itself, one inside the package, or one that was made and kept before.

    Args:
        model: Any model file.
        method: One of `quantize.METHODS`.
    """
    if model.metadata.method == method:
        return model
    if model.metadata.method != FP32:
        return None
    return packaged_variant(model, method) or find_cached(model, variant_key(method, ""))


def find_variant(model: ModelFile, method: str, calibration: Path | None, backend: str) -> ModelFile:
    """A variant that is there, or a new one, which passed the quality gate and is kept for the next time.

    Args:
        model: An fp32 model file, or one that was quantized by the method.
        method: One of `quantize.METHODS`.
        calibration: Folder with noisy speech, for a method that measures ranges.
        backend: Who asks, for errors.

    Raises:
        ModelError: The file was quantized otherwise, or calibration audio is missing.
        QualityError: The variant is too far from the model.
        QuantizeError, AudioError: The calibration audio is not usable.
        BackendUnavailable: Packages are missing to make one.
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
        raise ModelError(f"{str(model.path)!r} is calibrated already: calibration audio is of no use to it")
    from frcrn_accel.evaluate.clips import read_clips
    from frcrn_accel.quantize import MAX_RESCUED, METHODS, quantize_model
    from frcrn_accel.quantize.clips import digest_of

    ModelFile.open(model.path)  # a damaged file is the first thing to tell
    if METHODS[method].needs_calibration and calibration is None:
        raise ModelError(
            f"{model.metadata.name!r} has not been calibrated for backend {backend!r}: give a folder of noisy speech "
            f"with calibration=, or run 'frcrn-accel quantize {model.path} OUT.onnx --method {method} --calibration "
            f"DIR' once and give OUT.onnx as the model"
        )
    digest = "" if calibration is None else digest_of(read_clips(calibration, model.metadata.sample_rate_hz))

    def build(path: Path) -> None:
        log.info("quantizing %s with method %r, once: this can take minutes", model.metadata.name, method)
        report = quantize_model(
            model.path, path, method, calibration=calibration, max_rescued=MAX_RESCUED, overwrite=True
        )
        if report.kept_float:
            log.info("it sounds right with %s left in float", ", ".join(report.kept_float))

    try:
        return cached_variant(model, variant_key(method, digest), build)
    except MissingExtraError as error:
        reason = f"the model is not quantized yet, and for that packages are missing ({error.__cause__})"
        raise BackendUnavailable(backend, reason, install_hint("quantize")) from error


def variant_key(method: str, calibration_sha256: str) -> dict[str, str]:
    """What a variant in the cache is kept under, beside its source; without calibration audio the digest is empty."""
    return {"method": method, "calibration": calibration_sha256}


def find_form(model: ModelFile, form: Form, backend: str) -> ModelFile:
    """An fp32 model in another form of its graph: one that was made before, or a new one, made of the weights.

    Args:
        model: An fp32 model file.
        form: See `export.frcrn.build_graph`.
        backend: Who asks, for errors.

    Raises:
        ModelError: The file does not hold the weights as they were.
        BackendUnavailable: Packages are missing to make one.
    """

    def build(path: Path) -> None:
        path.write_bytes(_graph(model, form, model.metadata, None).SerializeToString())

    return _made(model, {"form": form}, build, backend)


def find_step(model: ModelFile, form: Form, backend: str, lookahead: int, open_step: OpenStep) -> ModelFile:
    """A step of the streams of an fp32 model: one inside the package, one that was made before, or a new one.

    Args:
        model: An fp32 model file.
        form: See `export.frcrn.build_graph`.
        backend: Who asks, for errors.
        lookahead: Frames that each U-Net looks ahead.
        open_step: Loads a step, to measure what streams start with.

    Raises:
        ModelError: The file does not hold the weights as they were.
        BackendUnavailable: Packages are missing to make one.
    """
    if lookahead == usual_lookahead(model) and form == "step":  # what ONNX Runtime takes
        packaged = packaged_variant(model, STREAM)
        if packaged is not None:
            return packaged

    def build(path: Path) -> None:
        metadata = replace(model.metadata, timeline=STREAM)
        _write_step(path, _graph(model, form, metadata, lookahead), metadata, open_step)

    return _made(model, {"form": form, "timeline": STREAM, "lookahead": str(lookahead)}, build, backend)


def find_int8_step(
    model: ModelFile, method: str, calibration: Path | None, backend: str, lookahead: int, open_step: OpenStep
) -> ModelFile:
    """The same with the numbers of a quantized variant. See `find_variant` and `find_step`.

    Args:
        model: The fp32 model.
        method: "dynamic" or "static".
        calibration: See `find_variant`.
        backend: Who asks, for errors.
        lookahead: See `find_step`.
        open_step: See `find_step`.

    Raises:
        ModelError: The model is quantized itself; see also `find_variant`.
        Exception: See `find_variant`.
    """
    if model.metadata.method != FP32:
        raise ModelError(
            f"{str(model.path)!r} is quantized, and a stream's graph is made of the weights as they were: give the "
            f"fp32 file (sha256 {model.metadata.source_sha256}) and backend {backend!r}"
        )
    variant = find_variant(model, method, calibration, backend)

    def build(path: Path) -> None:
        from frcrn_accel.export import read_weights
        from frcrn_accel.quantize.int8 import build_stream

        metadata = replace(variant.metadata, timeline=STREAM)
        _write_step(path, build_stream(read_weights(model.path), variant, metadata, lookahead), metadata, open_step)

    return _made(variant, {"timeline": STREAM, "lookahead": str(lookahead)}, build, backend)


def _graph(model: ModelFile, form: Form, metadata: ModelMetadata, lookahead: int | None) -> onnx.ModelProto:
    """Of the whole signal, or of a step."""
    from frcrn_accel.export import read_weights
    from frcrn_accel.export.frcrn import build_graph
    from frcrn_accel.export.timeline import Stream, WholePass

    timeline = WholePass if lookahead is None else partial(Stream, lookahead=lookahead)
    weights = read_weights(model.path)
    return build_graph(
        weights, metadata.name, metadata.library_version, metadata.to_properties(), form, timeline=timeline
    )


def _write_step(path: Path, graph: onnx.ModelProto, metadata: ModelMetadata, open_step: OpenStep) -> None:
    """With what its streams start with."""
    from onnx import helper

    from frcrn_accel.streaming.start import measure_start

    path.write_bytes(graph.SerializeToString())
    session = open_step(ModelFile(path, metadata))
    try:
        start_means = measure_start(session, metadata)
    finally:
        session.close()
    helper.set_model_props(graph, replace(metadata, start_means=start_means).to_properties())
    path.write_bytes(graph.SerializeToString())


def _made(model: ModelFile, key: Mapping[str, str], build: Callable[[Path], None], backend: str) -> ModelFile:
    try:
        return cached_variant(model, key, build)
    except ImportError as error:
        reason = f"a graph of another form is needed, and to write it packages are missing ({error})"
        raise BackendUnavailable(backend, reason, install_hint("quantize")) from error
