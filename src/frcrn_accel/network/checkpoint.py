"""Read FRCRN checkpoints, in every format they are released in.

A checkpoint becomes a mapping from released key names to `float32` arrays, with exactly the tensors that
`topology.parameter_shapes` lists. A missing, unexpected or wrongly shaped tensor is an error.
"""

from __future__ import annotations

import codecs
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import MissingExtraError, ModelError, one_line
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
# The first tensor of a network, by its two names.
_ANCHORS = ("unet.encoders.0.conv.conv_re.weight", "unet.encoder0.conv.conv_re.weight")
# Names that torch.compile, DataParallel, FSDP and checkpointing put into keys, anywhere.
_WRAPPING = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Where the weights are in a checkpoint that holds more, the first that is there; `average` is of this library's runs.
_WRAPPERS = ("", "state_dict", "model_state_dict", "model", "model.state_dict", "average")
_MAX_DEPTH = 3
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
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ModelError(f"checkpoint {str(path)!r} cannot be read: {error.strerror}") from error
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        raise ModelError(
            f"checkpoint {str(path)!r} is a file of safetensors: write what safetensors.torch.load_file returns with "
            "torch.save, and use that"
        )
    try:
        with warnings.catch_warnings(), _numpy_allowed(torch):
            warnings.simplefilter("ignore")  # torch warns of old pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the reader fail with nearly any class
        # torch's own message advises to load a rejected file unsafely: do not pass that on.
        raise ModelError(
            f"checkpoint {str(path)!r} is not a file of plain tensors written by torch.save, or is damaged"
        ) from error
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
        raise ModelError(f"it does not hold an FRCRN ({_ANCHORS[0]!r} with a multiple of 8 channels)")
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


@contextmanager
def _numpy_allowed(torch: Any) -> Iterator[None]:
    """Let `torch.load` make arrays and scalars of numpy, such as a score beside the weights. They run no code."""
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch before 2.5
        yield
        return
    array, scalar = np.zeros(1), np.float64(0)
    makers = [maker.__reduce__()[0] for maker in (array, scalar)]
    with allow([*makers, np.ndarray, np.dtype, *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"), codecs.encode]):
        yield


def _find_state_dict(content: Any) -> dict[str, Any]:
    """Find the state dict in a checkpoint, and remove the names of the modules that wrap the network."""
    if not isinstance(content, Mapping):
        raise ModelError("it does not hold a state dict")
    found = dict(_state_dicts(content, ""))
    if not found:
        if not content or not all(isinstance(key, str) for key in content):
            raise ModelError("it does not hold a state dict")
        raise ModelError(f"it does not hold an FRCRN ({_ANCHORS[0]!r} with a multiple of 8 channels)")
    for wrapper in _WRAPPERS:
        if wrapper in found:
            return found[wrapper]
    if len(found) > 1:
        raise ModelError(
            f"it holds several networks, {', '.join(map(repr, found))}: save the one that you want alone"
        )
    return next(iter(found.values()))


def _state_dicts(content: Mapping[Any, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the state dicts of FRCRNs in nested mappings, by the names on the way to them."""
    if all(isinstance(key, str) for key in content):
        keys = {key: ".".join(part for part in key.split(".") if part not in _WRAPPING) for key in content}
        prefixes = {key.removesuffix(anchor) for key in keys.values() for anchor in _ANCHORS if key.endswith(anchor)}
        # A prefix ends at a dot: `my_unet.` is another module.
        prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")}
        if len(prefixes) > 1:
            raise ModelError(f"it holds several networks, {', '.join(map(repr, sorted(prefixes)))}")
        if prefixes:
            yield name, _without(prefixes.pop(), content, keys)
            return
    for key, value in content.items():
        if isinstance(value, Mapping) and name.count(".") < _MAX_DEPTH:
            yield from _state_dicts(value, f"{name}.{key}" if name else str(key))


def _without(prefix: str, content: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a state dict by their keys without a prefix and without wrapping modules."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        short = keys[key].removeprefix(prefix)
        if short in found and value is not found[short]:
            first, second = _array(short, found[short]), _array(short, value)
            if not np.array_equal(first, second):
                raise ModelError(f"it holds two different tensors for {short!r}")
        found[short] = value
    return found


def _canonical_keys(state_dict: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return numpy arrays with a single key for each tensor, without those that the network does not use."""
    tensors: dict[str, NDArray[np.float32]] = {}
    for key, value in state_dict.items():
        if match := _ALIAS.fullmatch(key):
            unet, kind, index, rest = match.groups()
            key = f"{unet}.{_LIST_NAME.get(kind, kind)}.{index}.{rest}"
        if _UNUSED.fullmatch(key):
            continue
        array = _array(key, value)
        if key in tensors and not np.array_equal(tensors[key], array):
            raise ModelError(f"it holds two different tensors for {key!r}")
        tensors[key] = array
    return tensors


def _array(key: str, value: Any) -> NDArray[np.float32]:
    """Return a tensor of torch, or an array of numpy, as an array.

    Raises:
        ModelError: It is something else, or does not hold real numbers.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            raise ModelError(f"{key!r} holds {value.dtype} numbers instead of floating-point ones")
        return value.astype(np.float32)
    if not hasattr(value, "detach"):
        raise ModelError(f"{key!r} is not a tensor but {type(value).__name__}")
    if value.is_meta:
        raise ModelError(f"{key!r} has a shape but no values: it was saved from the meta device")
    if value.is_quantized or not value.is_floating_point():
        raise ModelError(
            f"{key!r} holds {str(value.dtype).removeprefix('torch.')} numbers instead of floating-point ones"
        )
    try:
        return np.asarray(value.detach().to("cpu").to_dense().float().numpy())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{key!r} is not a plain tensor: {one_line(error)}") from error


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
