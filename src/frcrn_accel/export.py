"""Export a checkpoint to a model file: build the graph, verify it against PyTorch, then move it into place.

Needs the `[export]` extra.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from frcrn_accel._version import __version__
from frcrn_accel.atomic import replacing
from frcrn_accel.errors import ExportError, MissingExtraError, ModelError, OutputExistsError
from frcrn_accel.models import ModelFile, ModelMetadata, model_name, read_weights
from frcrn_accel.network.checkpoint import Checkpoint, Weights, load_checkpoint
from frcrn_accel.network.seeded import random_weights
from frcrn_accel.network.topology import FRAME_SAMPLES, HOP_SAMPLES, SAMPLE_RATE_HZ, Config

__all__ = [
    "MAX_ERROR",
    "ExportReport",
    "difference_from_pytorch",
    "export_model",
    "read_weights",
    "write_random_model",
]

MAX_ERROR = 1e-4  # largest difference from PyTorch, as a share of the peak of its output


@dataclass(frozen=True)
class ExportReport:
    """Result of an export.

    Attributes:
        model: The model file.
        difference: See `difference_from_pytorch`.
        bytes: Size of the file.
    """

    model: ModelFile
    difference: float
    bytes: int


def export_model(
    checkpoint: str | Path, out: str | Path, *, name: str | None = None, overwrite: bool = False
) -> ExportReport:
    """Write a checkpoint as a model file.

    Args:
        checkpoint: Weights in any of the forms that `network.checkpoint.load_checkpoint` reads.
        out: Path of the ONNX file to write.
        name: Name of the model; see `models.model_name`.
        overwrite: Replace `out` if it exists.

    Raises:
        MissingExtraError: The `[export]` extra is not installed.
        ModelError: The checkpoint is not usable, or `out` cannot be written.
        ExportError: The graph's output differs from PyTorch's, or is not finite or all zeros; nothing is written.
        OutputExistsError: `out` exists and `overwrite` is false.
    """
    out = Path(out)
    try:
        with replacing(out, overwrite=overwrite) as temporary:
            loaded = load_checkpoint(Path(checkpoint))
            chosen = model_name(Path(checkpoint), name, loaded.sha256)
            try:
                temporary.write_bytes(_serialized(loaded, chosen))
            except ImportError as error:
                raise MissingExtraError("Exporting a model", "export", error) from error
            difference = difference_from_pytorch(ModelFile.open(temporary), loaded.weights)
            if math.isnan(difference):
                raise ExportError(
                    f"the model's output on noise is not finite, or all zeros: {str(out)!r} was not written. Check "
                    "the checkpoint's weights"
                )
            if difference > MAX_ERROR:
                raise ExportError(
                    f"the graph differs from PyTorch by {difference:.1e} of the peak (at most {MAX_ERROR:.0e}): "
                    f"{str(out)!r} was not written"
                )
    except OutputExistsError:
        raise
    except OSError as error:
        raise ModelError(f"{str(out)!r} cannot be written: {error.strerror}") from error
    return ExportReport(ModelFile.open(out), difference, out.stat().st_size)


def write_random_model(path: Path, config: Config, name: str = "random", seed: int = 0) -> ModelFile:
    """Write a model file with random weights, for tests and timings: it has a speed, but its output means nothing.

    Args:
        path: File to write.
        config: Size of the network.
        name: Name of the model.
        seed: Seed of the weights.

    Raises:
        ImportError: The ONNX package is not installed.
    """
    path.write_bytes(_serialized(Checkpoint("0" * 64, config, random_weights(config, seed)), name))
    return ModelFile.open(path)


def _serialized(checkpoint: Checkpoint, name: str) -> bytes:
    """Return the content of the model file of a checkpoint: the graph, with its metadata."""
    from frcrn_accel.graph.forms import build_graph

    metadata = ModelMetadata(
        name=name,
        checkpoint_sha256=checkpoint.sha256,
        library_version=__version__,
        sample_rate_hz=SAMPLE_RATE_HZ,
        frame_samples=FRAME_SAMPLES,
        hop_samples=HOP_SAMPLES,
        channels=checkpoint.config.channels,
        unets=checkpoint.config.unets,
    )
    graph = build_graph(checkpoint.weights, name, __version__, metadata.to_properties())
    content: bytes = graph.SerializeToString(deterministic=True)
    return content


def difference_from_pytorch(model: ModelFile, weights: Weights) -> float:
    """Run a model file on ONNX Runtime and its weights in PyTorch, on noise, and compare the outputs.

    Args:
        model: The fp32 model file.
        weights: The weights that it was made from.

    Returns:
        Largest difference, as a share of the peak of PyTorch's output. NaN if an output is not finite or PyTorch's is
        all zeros.
    """
    import torch

    from frcrn_accel.backends.ort import OrtBackend
    from frcrn_accel.network.module import build_network

    network = build_network(weights)
    session = OrtBackend().load(model, threads=1)
    rng = np.random.default_rng(0)
    differences = []
    # A single frame; a batch; a length that is not a whole number of frames.
    for batch, samples in ((1, FRAME_SAMPLES), (2, 2 * SAMPLE_RATE_HZ), (1, SAMPLE_RATE_HZ + 1)):
        audio = (0.056 * rng.standard_normal((batch, samples))).astype(np.float32)
        with torch.inference_mode():
            expected = network(torch.from_numpy(audio)).numpy()
        error, peak = (np.max(np.abs(values)) for values in (session.run(audio) - expected, expected))
        differences.append(error / peak if peak > 0 else np.nan)
    return float(np.max(differences))  # NaN if any of them is: Python's max() may drop it
