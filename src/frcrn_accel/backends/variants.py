"""Quantized variants of a model, for the backends that run them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from frcrn_accel.errors import BackendUnavailable, MissingExtraError, ModelError, install_hint
from frcrn_accel.model.topology import LOOKAHEAD_FRAMES
from frcrn_accel.models import FP32, STREAM, ModelFile, cached_variant, find_cached, packaged_variant

if TYPE_CHECKING:
    from frcrn_accel.export.frcrn import Form

__all__ = ["find_form", "find_int8_stream", "find_variant", "ready_variant", "variant_key"]

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
    from frcrn_accel.quantize import METHODS, quantize_model
    from frcrn_accel.quantize.clips import digest_of

    ModelFile.open(model.path)  # a damaged file is the first thing to tell
    if METHODS[method].needs_calibration and calibration is None:
        raise ModelError(
            f"{model.metadata.name!r} has not been calibrated for backend {backend!r}: give a folder of noisy speech "
            f"with calibration=, or run 'frcrn-accel quantize {model.path} OUT.onnx --method {method} --calibration "
            f"FOLDER' once and give OUT.onnx as the model"
        )
    digest = "" if calibration is None else digest_of(read_clips(calibration, model.metadata.sample_rate_hz))

    def build(path: Path) -> None:
        log.info("quantizing %s with method %r, once: this can take minutes", model.metadata.name, method)
        quantize_model(model.path, path, method, calibration=calibration, overwrite=True)

    try:
        return cached_variant(model, variant_key(method, digest), build)
    except MissingExtraError as error:
        reason = f"the model is not quantized yet, and for that packages are missing ({error.__cause__})"
        raise BackendUnavailable(backend, reason, install_hint("quantize")) from error


def variant_key(method: str, calibration_sha256: str) -> dict[str, str]:
    """What a variant in the cache is kept under, beside its source; without calibration audio the digest is empty."""
    return {"method": method, "calibration": calibration_sha256}


def find_form(model: ModelFile, form: Form, backend: str, *, lookahead: int | None = None) -> ModelFile:
    """An fp32 model in another form of its graph: one inside the package, or one made of the weights, and kept.

    Args:
        model: An fp32 model file.
        form: See `export.frcrn.build_graph`.
        backend: Who asks, for errors.
        lookahead: A step of a stream, whose U-Nets look so many frames ahead; None for the whole signal.

    Raises:
        ModelError: The file does not hold the weights as they were.
        BackendUnavailable: Packages are missing to make one.
    """
    if (
        lookahead == LOOKAHEAD_FRAMES
        and form == "plain"
        and (packaged := packaged_variant(model, STREAM)) is not None
    ):
        return packaged

    def build(path: Path) -> None:
        from frcrn_accel.export import read_weights
        from frcrn_accel.export.frcrn import build_graph
        from frcrn_accel.export.timeline import Stream, WholePass

        metadata = model.metadata if lookahead is None else replace(model.metadata, timeline=STREAM)
        graph = build_graph(
            read_weights(model.path),
            metadata.name,
            metadata.library_version,
            metadata.to_properties(),
            form,
            timeline=WholePass if lookahead is None else partial(Stream, lookahead=lookahead),
        )
        path.write_bytes(graph.SerializeToString())

    key = {"form": form} if lookahead is None else {"form": form, "timeline": STREAM, "lookahead": str(lookahead)}
    return _made(model, key, build, backend)


def find_int8_stream(model: ModelFile, method: str, calibration: Path | None, backend: str) -> ModelFile:
    """A step of a stream with the numbers of a quantized variant. See `find_variant`.

    Args:
        model: The fp32 model.
        method: "dynamic" or "static".
        calibration: See `find_variant`.
        backend: Who asks, for errors.

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

        path.write_bytes(build_stream(read_weights(model.path), variant).SerializeToString())

    return _made(variant, {"timeline": STREAM}, build, backend)


def _made(model: ModelFile, key: Mapping[str, str], build: Callable[[Path], None], backend: str) -> ModelFile:
    try:
        return cached_variant(model, key, build)
    except ImportError as error:
        reason = f"a graph of another form is needed, and to write it packages are missing ({error})"
        raise BackendUnavailable(backend, reason, install_hint("quantize")) from error
