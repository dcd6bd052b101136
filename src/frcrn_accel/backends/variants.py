"""Quantized variants of a model, for the backends that run them."""

from __future__ import annotations

import logging
from pathlib import Path

from frcrn_accel.errors import BackendUnavailable, MissingExtraError, ModelError, install_hint
from frcrn_accel.models import FP32, ModelFile, cached_variant, find_cached, packaged_variant

__all__ = ["find_variant", "ready_variant", "variant_key"]

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
            f"DIR' once and give OUT.onnx as the model"
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
