"""Making a model file: build the graph, prove it against PyTorch, and only then put it in place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from frcrn_accel._version import __version__
from frcrn_accel.atomic import replacing
from frcrn_accel.errors import ExportError, MissingExtraError, ModelError, OutputExistsError
from frcrn_accel.model.checkpoint import Checkpoint, Weights, load_checkpoint
from frcrn_accel.model.topology import (
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    config_of,
    parameter_shapes,
)
from frcrn_accel.models import FP32, METADATA_PREFIX, ModelFile, ModelMetadata

if TYPE_CHECKING:
    import onnx

__all__ = ["MAX_ERROR", "ExportReport", "export_model", "read_weights"]

MAX_ERROR = 1e-4  # largest difference from PyTorch, as a share of the peak


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        model: The file that was written.
        difference: Largest difference from PyTorch on the test signals, as a share of their peak.
        bytes: Size of the file.
    """

    model: ModelFile
    difference: float
    bytes: int


def export_model(
    checkpoint: str | Path, out: str | Path, *, name: str | None = None, overwrite: bool = False
) -> ExportReport:
    """Turn a checkpoint into a model file.

    Args:
        checkpoint: A released or fine-tuned checkpoint, see `model.checkpoint.load_checkpoint`.
        out: Path of the ONNX file to write.
        name: Name of the model; see `model.checkpoint.load_checkpoint`.
        overwrite: Replace `out` if it exists.

    Raises:
        MissingExtraError: The `[export]` extra is not installed.
        ModelError: The checkpoint is not usable.
        ExportError: The graph does not give what PyTorch gives; nothing is written.
        OutputExistsError: `out` exists and `overwrite` is false.
    """
    out = Path(out)
    try:
        with replacing(out, overwrite=overwrite) as temporary:
            loaded = load_checkpoint(Path(checkpoint), name)
            temporary.write_bytes(_build(loaded).SerializeToString())
            difference = _difference(ModelFile.open(temporary), loaded.weights)
            if not difference <= MAX_ERROR:  # NaN fails as well
                raise ExportError(
                    f"the graph differs from PyTorch by {difference:.1e} of the peak (at most {MAX_ERROR:.0e}): "
                    f"{str(out)!r} was not written"
                )
    except OutputExistsError:
        raise
    except OSError as error:
        raise ModelError(f"{str(out)!r} cannot be written: {error.strerror}") from error
    return ExportReport(ModelFile.open(out), difference, out.stat().st_size)


def read_weights(path: Path) -> Weights:
    """The network's weights out of an fp32 model file, under the released key names.

    Raises:
        ModelError: The file does not hold them, or holds quantized ones.
    """
    import onnx
    from onnx import numpy_helper

    try:
        model: onnx.ModelProto = onnx.load(path)
    except Exception as error:  # protobuf's DecodeError is no public class
        raise ModelError(f"{str(path)!r} is not an ONNX file ({error})") from error
    properties = {entry.key: entry.value for entry in model.metadata_props}
    method = properties.get(f"{METADATA_PREFIX}method", FP32)
    if method != FP32:
        raise ModelError(
            f"{str(path)!r} is quantized ({method}) and no longer holds the weights as they were: give the fp32 file "
            f"that it was made from (sha256 {properties.get(f'{METADATA_PREFIX}source_sha256', 'unknown')})"
        )
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    config = config_of(weights)
    shapes = parameter_shapes(config) if config is not None else {}
    if not shapes or any(key not in weights or weights[key].shape != shape for key, shape in shapes.items()):
        raise ModelError(f"{str(path)!r} does not hold the weights of an FRCRN under their released names")
    return {key: weights[key] for key in shapes}


def _build(checkpoint: Checkpoint) -> onnx.ModelProto:
    """The graph, with its metadata."""
    try:
        from frcrn_accel.export.frcrn import build_graph
    except ImportError as error:
        raise MissingExtraError("Exporting a model", "export", error) from error
    metadata = ModelMetadata(
        name=checkpoint.name,
        checkpoint_sha256=checkpoint.sha256,
        library_version=__version__,
        sample_rate_hz=SAMPLE_RATE_HZ,
        window_samples=WINDOW_SAMPLES,
        hop_samples=HOP_SAMPLES,
        channels=checkpoint.config.channels,
        unets=checkpoint.config.unets,
    )
    return build_graph(checkpoint.weights, checkpoint.name, __version__, metadata.to_properties())


def _difference(model: ModelFile, weights: Weights) -> float:
    """Largest difference between the file on ONNX Runtime and PyTorch, over the peak of PyTorch's output."""
    import torch

    from frcrn_accel.backends.ort import OrtBackend
    from frcrn_accel.model.network import build_network

    network = build_network(weights)
    session = OrtBackend().load(model, threads=1)
    rng = np.random.default_rng(0)
    worst = 0.0
    # One frame; a batch; a length that is no whole number of frames.
    for batch, samples in ((1, WINDOW_SAMPLES), (2, 2 * SAMPLE_RATE_HZ), (1, SAMPLE_RATE_HZ + 1)):
        audio = (0.056 * rng.standard_normal((batch, samples))).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(audio)).numpy()
        worst = max(worst, float(np.max(np.abs(session.run(audio) - expected)) / np.max(np.abs(expected))))
    return worst
