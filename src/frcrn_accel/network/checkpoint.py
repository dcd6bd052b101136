"""Read FRCRN checkpoints, in every format they are released in.

A checkpoint becomes a mapping from released key names to `float32` arrays, with exactly the tensors that
`topology.parameter_shapes` lists. A missing, unexpected or wrongly shaped tensor is an error.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import MissingExtraError, ModelError
from frcrn_accel.network.topology import (
    STAGES,
    Config,
    config_of,
    parameter_shapes,
    required_config,
    stft_kernel,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["Checkpoint", "Weights", "load_checkpoint", "normalise_state_dict"]

Weights = Mapping[str, NDArray[np.float32]]
"""Tensors of a network by their released key names, see `topology.parameter_shapes`."""

# Modules in checkpoints that the forward pass does not use.
_UNUSED = re.compile(
    rf"unet2?\.(fsmn_enc\.0|fsmn_dec\.{STAGES - 1}|se_layers_enc\.{STAGES - 1}|se_layers_dec\.{STAGES - 2})\..*"
    r"|.*\.num_batches_tracked"
)
# `encoder0.` and `encoders.0.` are two names of one module.
_ALIAS = re.compile(r"(unet2?)\.(encoder|decoder|fsmn_enc|fsmn_dec|se_layer_enc|se_layer_dec)(\d)\.(.*)")
_LIST_NAME = {
    "encoder": "encoders",
    "decoder": "decoders",
    "se_layer_enc": "se_layers_enc",
    "se_layer_dec": "se_layers_dec",
}
_LISTED = 8  # at most this many keys of each kind in an error


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one FRCRN.

    Attributes:
        sha256: Digest of the file, hexadecimal.
        config: Size of the network.
        weights: Its tensors.
    """

    sha256: str
    config: Config
    weights: Weights


def load_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint file.

    Args:
        path: A file written by `torch.save`. It is read with `weights_only=True`, which never runs code in the file.

    Raises:
        MissingExtraError: torch is not installed.
        ModelError: The file cannot be read or does not hold an FRCRN.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("Reading a checkpoint", "export", error) from error
    try:
        sha256 = sha256_of(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"checkpoint {str(path)!r} cannot be read: {error.strerror}") from error
    except Exception as error:  # damaged files make the reader fail with nearly any class
        # torch's own message advises to load a rejected file unsafely: do not pass that on.
        raise ModelError(f"checkpoint {str(path)!r} is not a file of plain tensors written by torch.save") from error
    try:
        weights = normalise_state_dict(content)
    except ModelError as error:
        raise ModelError(f"checkpoint {str(path)!r}: {error}") from error
    return Checkpoint(sha256, required_config(weights), weights)


def normalise_state_dict(content: Any) -> Weights:
    """Turn the content of a checkpoint file into the network's weights.

    Raises:
        ModelError: It is not the state dict of an FRCRN. Missing, unexpected and wrong keys are listed.
    """
    tensors = _canonical_keys(_find_state_dict(content))
    config = config_of(tensors)
    if config is None:
        raise ModelError(
            "it does not hold an FRCRN ('unet.encoders.0.conv.conv_re.weight' with a multiple of 8 channels)"
        )
    tensors = {key: tensor for key, tensor in tensors.items() if not _UNUSED.fullmatch(key)}
    _drop_transform(tensors)
    shapes = parameter_shapes(config)
    problems = [
        *_listed("missing", sorted(shapes.keys() - tensors.keys())),
        *_listed("unexpected", sorted(tensors.keys() - shapes.keys())),
        *_listed(
            "wrong shape",
            [
                f"{key} {tensors[key].shape}, expected {shape}"
                for key, shape in shapes.items()
                if key in tensors and tensors[key].shape != shape
            ],
        ),
        *_listed("not finite", [key for key in shapes if key in tensors and not np.isfinite(tensors[key]).all()]),
    ]
    if problems:
        raise ModelError(
            f"its tensors do not match an FRCRN with {config.channels} channels and {config.unets} U-Net(s): "
            + "; ".join(problems)
        )
    return {key: tensors[key] for key in shapes}


def _find_state_dict(content: Any) -> dict[str, Any]:
    """Unwrap `{"model": …}` and `{"state_dict": …}` and remove the prefixes of wrapping modules."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ModelError("it does not hold a state dict")
    for prefix in ("module.", "model."):
        if content and all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return dict(content)


def _canonical_keys(state_dict: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return numpy arrays with a single key for each tensor."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, value in state_dict.items():
        try:
            array = np.asarray(value.detach().to("cpu").float().numpy())
        except AttributeError:
            raise ModelError(f"{key!r} is not a tensor but {type(value).__name__}") from None
        if match := _ALIAS.fullmatch(key):
            unet, kind, index, rest = match.groups()
            key = f"{unet}.{_LIST_NAME.get(kind, kind)}.{index}.{rest}"
        if key in tensors and not np.array_equal(tensors[key], array):
            raise ModelError(f"it holds two different tensors for {key!r}")
        tensors[key] = array
    return tensors


def _drop_transform(tensors: dict[str, NDArray[np.float32]]) -> None:
    """Remove the fixed kernels of the STFT, after checking that this library computes the same ones."""
    kernel = stft_kernel()
    fixed = {
        "stft.weight": kernel[:, None],
        "istft.weight": (kernel * stft_synthesis_scale()[:, None])[:, None],
        "istft.window": stft_window()[None, :, None],
        "istft.enframe": np.eye(len(stft_window()))[:, None],
    }
    for key, expected in fixed.items():
        array = tensors.pop(key, None)
        if array is not None and not (array.shape == expected.shape and np.allclose(array, expected, atol=1e-5)):
            raise ModelError(f"{key!r} is not the 640/320 transform with a square-root Hann window")


def _listed(kind: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return [f"{kind}: {', '.join(keys[:_LISTED])}{more}"]
