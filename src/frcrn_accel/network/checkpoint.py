"""Read the weights of an FRCRN from a file, in any of the forms in use.

The same weights give the same arrays, bit for bit, whatever the form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import MissingExtraError, ModelError
from frcrn_accel.network.state_dict import Weights, normalise_state_dict
from frcrn_accel.network.tensor_files import (
    MAX_BYTES,
    is_npz,
    is_safetensors,
    read_npz,
    read_safetensors,
    read_torch,
)
from frcrn_accel.network.topology import Config, required_config

__all__ = ["Checkpoint", "Weights", "checkpoint_digest", "load_checkpoint", "normalise_state_dict"]


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one FRCRN.

    Attributes:
        sha256: Digest of the file, hexadecimal; see `checkpoint_digest`.
        config: Size of the network.
        weights: Its tensors.
    """

    sha256: str
    config: Config
    weights: Weights


def load_checkpoint(path: Path) -> Checkpoint:
    """Load the weights of an FRCRN from a file. Its content, not its name, decides how it is read.

    ============  ==========================================================================================
    form          how it is read
    ============  ==========================================================================================
    torch.save    with `weights_only=True`, which never runs code in the file
    safetensors   by the package safetensors
    .npz          without Python objects; convolutions with channels last, as in MLX, are recognised by their shapes
    ONNX          by the names of its weights, or by their places in the graph; then the file's own output on
                  noise is compared with the network's: see `network.traced`
    ============  ==========================================================================================

    Args:
        path: The file.

    Raises:
        MissingExtraError: A package that reads this form is not installed.
        ModelError: The file cannot be read or does not hold an FRCRN.
    """
    try:
        import torch  # noqa: F401  everything that uses the weights needs it
    except ImportError as error:
        raise MissingExtraError("Reading a checkpoint", "export", error) from error
    with _path_in_errors(path):
        sha256 = _digest(path)
        weights = _read(path)
    return Checkpoint(sha256, required_config(weights), weights)


def checkpoint_digest(path: Path) -> str:
    """Return the sha256 of a checkpoint, hexadecimal: of the file, or of an ONNX file and its files of weights.

    Raises:
        MissingExtraError: It is an ONNX file, and the ONNX package is not installed.
        ModelError: The file cannot be read or is too large, or it is an ONNX file whose files of weights are missing
            or damaged.
    """
    with _path_in_errors(path):
        return _digest(path)


@contextmanager
def _path_in_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"checkpoint {str(path)!r} cannot be read: {error.strerror or error}") from error
    except ModelError as error:
        raise ModelError(f"checkpoint {str(path)!r}: {error}") from error


def _digest(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ModelError(f"it has {size / 1e9:.1f} GB, more than any FRCRN needs (at most {MAX_BYTES / 1e9:.1f} GB)")
    digest = sha256_of(path)
    if not _is_onnx(path):
        return digest
    from frcrn_accel.network.traced import weight_files

    files = weight_files(path)
    return hashlib.sha256("".join([digest, *map(sha256_of, files)]).encode()).hexdigest() if files else digest


def _read(path: Path) -> Weights:
    if _is_onnx(path):
        from frcrn_accel.network.traced import read_traced

        return read_traced(path)
    if is_safetensors(path):
        return normalise_state_dict(read_safetensors(path))
    return normalise_state_dict(read_npz(path) if is_npz(path) else read_torch(path))


def _is_onnx(path: Path) -> bool:
    """Return whether a file starts like an ONNX file: with the field of its version, which exporters write first."""
    with path.open("rb") as file:
        start = file.read(2)
    return len(start) == 2 and start[0] == 0x08 and 0 < start[1] < 32 and not is_safetensors(path)
