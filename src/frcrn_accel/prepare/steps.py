"""Find or make the step that a backend runs for streams.

Streams start from the squeeze-and-excitation means of noisy speech, which a step carries in its metadata. They are
measured by running the step itself, so a backend is needed to finish the file.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from frcrn_accel.backends import Backend, StepSession
from frcrn_accel.errors import ModelError
from frcrn_accel.models import (
    FP32,
    STEP,
    ModelFile,
    ModelMetadata,
    Recipe,
    cached_variant,
    loaded_once,
    packaged_variant,
    read_weights,
    usual_lookahead,
)
from frcrn_accel.prepare.variants import find_variant, packages_for
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.streaming.averaging import Averaging
from frcrn_accel.streaming.engine import Step, StreamEngine

if TYPE_CHECKING:
    import onnx

__all__ = ["measure_start", "prepare_step"]

PACKAGED_FORM = "step"  # the form of the steps in the package
_STEP_HOPS = 25

WriteGraph = Callable[[ModelMetadata], "onnx.ModelProto"]


def prepare_step(
    model: ModelFile, backend: Backend, threads: int, lookahead_frames: int, progress: Progress = no_progress
) -> ModelFile:
    """Return the file that a backend runs for streams of a model, see `Backend.step_recipe`.

    Args:
        model: The model that the user chose.
        backend: The backend that will load the file.
        threads: CPU threads to measure with, if the file must be made.
        lookahead_frames: Frames that each U-Net looks ahead.
        progress: Called while a file is made.

    Raises:
        ModelError: The model is quantized, and its original weights are needed.
        BackendUnavailable: The backend does not run streams, or packages needed to make the file are missing.
        Exception: See `prepare.prepare`.
    """
    recipe = backend.step_recipe(model, lookahead_frames)
    if recipe.lookahead_frames is None:
        return model
    if recipe.method != FP32:
        return _int8_step(model, recipe, backend, threads, progress)
    if recipe.form == PACKAGED_FORM and recipe.lookahead_frames == usual_lookahead(model):
        packaged = packaged_variant(model, STEP)
        if packaged is not None:
            return packaged
    key = {"form": str(recipe.form), "step": "", "lookahead": str(recipe.lookahead_frames)}

    def write_graph(metadata: ModelMetadata) -> onnx.ModelProto:
        from frcrn_accel.graph.forms import build_graph
        from frcrn_accel.graph.timeline import Stepwise

        assert recipe.form is not None
        return build_graph(
            read_weights(model.path),
            metadata.name,
            metadata.library_version,
            metadata.to_properties(),
            recipe.form,
            timeline=partial(Stepwise, lookahead=lookahead_frames),
        )

    metadata = replace(model.metadata, form=str(recipe.form), is_step=True)
    return _make_step(model, key, metadata, write_graph, backend, threads, progress)


def _int8_step(model: ModelFile, recipe: Recipe, backend: Backend, threads: int, progress: Progress) -> ModelFile:
    """Return a step with the weights and ranges of a quantized variant."""
    lookahead_frames = recipe.lookahead_frames
    assert lookahead_frames is not None
    if model.metadata.method != FP32:
        raise ModelError(
            f"{str(model.path)!r} is quantized, and a stream's graph is made of the original weights: give the fp32 "
            f"file (sha256 {model.metadata.source_sha256}) and backend {backend.name!r}"
        )
    variant = find_variant(model, recipe.method, recipe.calibration, backend.name, progress)

    def write_graph(metadata: ModelMetadata) -> onnx.ModelProto:
        from frcrn_accel.quantize.int8 import build_step

        return build_step(read_weights(model.path), variant, metadata, lookahead_frames)

    key = {"step": "", "lookahead": str(lookahead_frames)}
    metadata = replace(variant.metadata, is_step=True)
    return _make_step(variant, key, metadata, write_graph, backend, threads, progress)


def _make_step(
    source: ModelFile,
    key: dict[str, str],
    metadata: ModelMetadata,
    write_graph: WriteGraph,
    backend: Backend,
    threads: int,
    progress: Progress,
) -> ModelFile:
    """Return the cached step, or write its graph and measure the means that its streams start with."""

    def build(path: Path) -> None:
        progress("prepare streams", 0, 1)
        graph = write_graph(metadata)
        path.write_bytes(graph.SerializeToString())
        from onnx import helper

        with loaded_once():
            session = backend.load_step(ModelFile(path, metadata), threads)
        try:
            start_means = measure_start(session, metadata)
        finally:
            session.close()
        helper.set_model_props(graph, replace(metadata, start_means=start_means).to_properties())
        path.write_bytes(graph.SerializeToString())
        progress("prepare streams", 1, 1)

    with packages_for(backend.name, "streams run another graph"):
        return cached_variant(source, key, build)


def measure_start(session: StepSession, metadata: ModelMetadata) -> str:
    """Run a step on the noisy speech in the package and return the means that it ends with.

    Returns:
        The means of all squeeze-and-excitation layers, concatenated, as base64 text for the metadata.
    """
    from frcrn_accel.quality.clips import read_clips
    from frcrn_accel.quantize.recordings import CALIBRATION_AUDIO, model_inputs

    engine = StreamEngine(session, metadata)
    averaging = Averaging(horizon_s=None, start_s=0)
    state = engine.start(1, averaging)
    samples = _STEP_HOPS * metadata.hop_samples
    for audio in model_inputs(read_clips(CALIBRATION_AUDIO, metadata.sample_rate_hz), metadata):
        for first in range(0, audio.shape[1] - samples + 1, samples):
            ((_, state),) = engine.run([Step(state, averaging, audio[:, first : first + samples])])
    return base64.b64encode(engine.statistics(state, averaging).means.tobytes()).decode()
