"""Find the weights of an FRCRN in the content of a checkpoint file.

They become a mapping from released key names to `float32` arrays, with exactly the tensors that
`topology.parameter_shapes` lists. A missing, unexpected or wrongly shaped tensor is an error.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import ModelError, one_line
from frcrn_accel.network.layouts import as_pytorch
from frcrn_accel.network.topology import (
    STAGES,
    config_of,
    parameter_shapes,
    stft_kernel,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["Weights", "normalise_state_dict"]

Weights = Mapping[str, NDArray[np.float32]]
"""Tensors of a network by their released key names, see `topology.parameter_shapes`."""

# Modules in checkpoints that the forward pass does not use.
_UNUSED = re.compile(
    rf"unet2?\.(fsmn_enc\.0|fsmn_dec\.{STAGES - 1}|se_layers_enc\.{STAGES - 1}|se_layers_dec\.{STAGES - 2})\..*"
    r"|.*\.num_batches_tracked"
)
# `encoder0.` and `encoders.0.` are two names of one module, and MLX in Swift has `encoders_0.`.
_ALIAS = re.compile(
    r"(unet2?)\.(?:(encoder|decoder|fsmn_enc|fsmn_dec|se_layer_enc|se_layer_dec)"
    r"|(encoders_|decoders_|fsmn_enc_|fsmn_dec_|se_layers_enc_|se_layers_dec_))(\d)\.(.*)"
)
# Dense layers of a squeeze-and-excitation: `fc_r.0.`, in MLX `fc_r.layers.0.`, and in Swift `fc_r.linear1.`.
_DENSE = re.compile(r"(.*\.fc_[ri]\.)(?:layers[._]([02])|linear([12]))(\..*)")
_LIST_NAME = {
    "encoder": "encoders",
    "decoder": "decoders",
    "se_layer_enc": "se_layers_enc",
    "se_layer_dec": "se_layers_dec",
}
# The first tensor of a network, by its names.
_ANCHORS = tuple(f"unet.{name}.conv.conv_re.weight" for name in ("encoders.0", "encoder0", "encoders_0"))
# Names that torch.compile, DataParallel, FSDP and checkpointing insert anywhere in keys.
_WRAPPING = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Where the weights are in a checkpoint that holds more; the first one found counts. `average` is this library's own.
_WRAPPERS = ("", "state_dict", "model_state_dict", "model", "model.state_dict", "average")
_LISTED = 8  # at most this many keys of each kind in an error


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
    tensors = as_pytorch(tensors, shapes)
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
    """Find the state dict in a checkpoint, and remove the names of the modules that wrap the network."""
    if not isinstance(content, Mapping):
        raise ModelError("it does not hold a state dict")
    found = dict(_state_dicts(content))
    if not found:
        if not content or not all(isinstance(key, str) for key in content):
            raise ModelError("it does not hold a state dict")
        names = _listed("it holds", [str(key) for key in content])[0]
        raise ModelError(f"it does not hold an FRCRN ({_ANCHORS[0]!r} with a multiple of 8 channels): {names}")
    for wrapper in _WRAPPERS:
        if wrapper in found:
            return found[wrapper]
    if len(found) > 1:
        raise ModelError(f"it holds several networks, {', '.join(map(repr, found))}: save only the one that you want")
    return next(iter(found.values()))


def _state_dicts(content: Mapping[Any, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the state dicts of FRCRNs in nested mappings and lists, by the names on the way to them."""
    containers: deque[tuple[str, Any]] = deque([("", content)])
    seen: set[int] = set()
    while containers:
        name, container = containers.popleft()
        if id(container) in seen:  # pickled containers can hold each other, and themselves
            continue
        if isinstance(container, Mapping) and all(isinstance(key, str) for key in container):
            found = _own_state_dict(container)
            if found is not None:
                yield name, found
                continue
        seen.add(id(container))
        for key, value in container.items() if isinstance(container, Mapping) else enumerate(container):
            if isinstance(value, Mapping | list | tuple):
                containers.append((f"{name}.{key}" if name else str(key), value))


def _own_state_dict(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a mapping as a state dict, without the names of wrapping modules; None if it is not a state dict."""
    keys = {key: ".".join(part for part in key.split(".") if part not in _WRAPPING) for key in content}
    prefixes = {key.removesuffix(anchor) for key in keys.values() for anchor in _ANCHORS if key.endswith(anchor)}
    # A prefix ends at a dot: `my_unet.` is another module.
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")}
    if len(prefixes) > 1:
        raise ModelError(f"it holds several networks, {', '.join(map(repr, sorted(prefixes)))}")
    return _without(prefixes.pop(), content, keys) if prefixes else None


def _without(prefix: str, content: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of a state dict by their keys without a prefix and without wrapping modules.

    With a prefix, the other keys belong to other modules, such as a loss.
    """
    found: dict[str, Any] = {}
    for key, value in content.items():
        if not keys[key].startswith(prefix):
            continue
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
        key = _released_name(key)
        if _UNUSED.fullmatch(key):
            continue
        array = _array(key, value)
        if key in tensors and not np.array_equal(tensors[key], array):
            raise ModelError(f"it holds two different tensors for {key!r}")
        tensors[key] = array
    return tensors


def _released_name(key: str) -> str:
    """Return the name that a released checkpoint has for a tensor."""
    if match := _ALIAS.fullmatch(key):
        unet, kind, listed, index, rest = match.groups()
        key = f"{unet}.{listed[:-1] if listed else _LIST_NAME.get(kind, kind)}.{index}.{rest}"
    if match := _DENSE.fullmatch(key):
        start, index, number, rest = match.groups()
        key = f"{start}{index or 2 * (int(number) - 1)}{rest}"
    return key


def _array(key: str, value: Any) -> NDArray[np.float32]:
    """Return a torch tensor or a numpy array as a `float32` array.

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
    kernel, window = stft_kernel(), stft_window()
    fixed = {
        "stft.weight": kernel,
        "istft.weight": kernel * stft_synthesis_scale()[:, None],
        "istft.window": window,
        "istft.enframe": np.eye(len(window)),
        # Windows that others store beside the network.
        "stft_window": window,
        "istft_window": window,
    }
    for key, expected in fixed.items():
        array = tensors.pop(key, None)
        if array is not None and not _is_same(array, expected):
            raise ModelError(f"{key!r} is not the 640/320 transform with a square-root Hann window")
    tensors.pop("istft.window_sum", None)  # of MLX: the overlap-added squared window, of any length


def _is_same(array: NDArray[np.float32], expected: NDArray[Any]) -> bool:
    """Compare the kernel of a convolution with a matrix; channels may come last, as in MLX."""
    matrix = array.squeeze()
    if matrix.shape == expected.shape[::-1]:
        matrix = matrix.T
    tolerance = 2**-8 if _was_half(array) else 1e-5
    return matrix.shape == expected.shape and np.allclose(matrix, expected, rtol=tolerance, atol=1e-5)


def _was_half(array: NDArray[np.float32]) -> bool:
    """Return whether an array was stored as bfloat16 or float16."""
    with np.errstate(over="ignore"):
        is_float16 = np.array_equal(array, array.astype(np.float16))
    return is_float16 or not (np.ascontiguousarray(array).view(np.uint32) & 0xFFFF).any()


def _listed(kind: str, keys: list[str]) -> list[str]:
    if not keys:
        return []
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return [f"{kind}: {', '.join(keys[:_LISTED])}{more}"]
