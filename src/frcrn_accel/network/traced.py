"""Read the weights of an FRCRN from an ONNX graph that another tool exported.

Exporters keep the names of most weights and lose some: the weights of dense layers are transposed into unnamed
constants. Optimisers rename everything. The names are therefore used only if all of them are present. Otherwise the
weights are found by their places in the graph: a walk from its output meets the layers in an order that depends only
on the data flow, not on the order of the stored nodes.

A complex layer computes re(x0) - im(x1) and re(x1) + im(x0), so each of its weights is met twice. If batch norms were
folded into the convolutions, the two copies differ by a factor for each channel, which becomes the batch norm's.

Either way, the weights are right only if the network computes with them what the graph computes. Both are run on
noise, and their outputs must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.errors import FrcrnAccelError, MissingExtraError, ModelError, one_line
from frcrn_accel.network.state_dict import Weights, normalise_state_dict
from frcrn_accel.network.topology import (
    BN_EPSILON,
    FRAME_SAMPLES,
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    STAGES,
)

if TYPE_CHECKING:
    import onnx

__all__ = ["MIN_AGREEMENT_DB", "MIN_AGREEMENT_HALF_DB", "read_traced", "weight_files"]

MIN_AGREEMENT_DB = 60.0
"""Least ratio, in dB, of the output's energy to that of its difference from the graph's. Rounding leaves over 100."""
MIN_AGREEMENT_HALF_DB = 25.0
"""Least ratio for graphs in half precision."""

_Array = NDArray[Any]
# Kinds of layers.
_CONVOLUTION, _TRANSPOSED, _DEPTHWISE = "Conv", "ConvTranspose", "depthwise Conv"
_DENSE, _NORM = "MatMul or Gemm", "BatchNormalization"
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
_QUANTIZED = ("DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger")
_MAX_FIXED_SAMPLES = 3600 * SAMPLE_RATE_HZ


@dataclass
class _Layer:
    """An operator with weights, in PyTorch's order of axes; those of a norm are the four of `_NORM_TENSORS`."""

    kind: str
    arrays: list[_Array]
    bias: _Array | None = None


def weight_files(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its weights.

    Raises:
        OSError: The file cannot be read.
        MissingExtraError: The ONNX package is not installed.
        ModelError: It is damaged, or names a file that is not in its own folder or is too short.
    """
    with _damage_in_errors():
        return _external(path, _load(path))


def read_traced(path: Path) -> Weights:
    """Read the weights from an exported graph, and compare the network with the graph.

    Raises:
        OSError: The file cannot be read.
        MissingExtraError: The ONNX package, ONNX Runtime or torch is not installed.
        ModelError: The graph is damaged or quantized, is not an FRCRN from waveform to waveform, or its output is not
            that of an FRCRN with these weights.
    """
    with _damage_in_errors():
        model = _load(path)
        if _external(path, model):
            from onnx.external_data_helper import load_external_data_for_model

            load_external_data_for_model(model, str(path.parent))
        graph = _Graph(model)
        if graph.quantized:
            raise ModelError(
                f"its graph is quantized ({', '.join(sorted(graph.quantized))}): give the one it was made from"
            )
        weights = _by_name(graph)
        if weights is None:
            weights = normalise_state_dict(_by_place(graph.layers()))
        is_half = _is_half(graph)
    _check_agreement(path, weights, is_half)
    return weights


@contextmanager
def _damage_in_errors() -> Iterator[None]:
    """Turn any other exception, such as a malformed graph causes, into `ModelError`."""
    try:
        yield
    except (FrcrnAccelError, OSError):
        raise
    except Exception as error:  # they make the ONNX package, NumPy and this module fail with nearly any class
        raise ModelError(f"its graph is damaged: {one_line(error)}") from error


def _load(path: Path) -> onnx.ModelProto:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("Reading an ONNX file", "export", error) from error
    try:
        return onnx.load(path, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # protobuf's DecodeError is not a public class
        raise ModelError(f"it is a damaged ONNX file ({one_line(error)})") from error


def _external(path: Path, model: onnx.ModelProto) -> list[Path]:
    """Return the files that hold weights, after checking that each is whole, and a plain file in the same folder."""
    from onnx import TensorProto
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data
    from onnx.helper import tensor_dtype_to_np_dtype

    ends: dict[str, int] = {}
    for tensor in _tensors(model):
        if not uses_external_data(tensor):
            continue
        try:
            info = ExternalDataInfo(tensor)
            start = int(info.offset or 0)
            if tensor.data_type == TensorProto.STRING or start < 0 or any(size < 0 for size in tensor.dims):
                raise ValueError("it is not an array of numbers")
            length = int(np.prod(tensor.dims, dtype=object)) * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            if info.length is not None and int(info.length) != length:
                raise ValueError(f"it takes {length} bytes, and {info.length} are given")
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"its weights {tensor.name!r} are damaged: {one_line(error)}") from error
        ends[info.location] = max(ends.get(info.location, 0), start + length)
    folder = path.parent
    for name, end in ends.items():
        file = folder / name
        if Path(name).name != name or file.is_symlink() or not file.is_file():
            raise ModelError(f"it keeps weights in {name!r}, which is not a file beside it: put both in one folder")
        if file.stat().st_size < end:
            raise ModelError(f"its file of weights {name!r} is too short: {file.stat().st_size} of {end} bytes")
    return [folder / name for name in ends]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


class _Graph:
    """A graph, as the layers with weights that its output depends on."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.outputs = [output.name for output in model.graph.output]
        self.initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.makers = {output: node for node in model.graph.node for output in node.output if output}
        kinds = {node.op_type for node in model.graph.node}
        self.quantized = {kind for kind in kinds if kind in _QUANTIZED or "QLinear" in kind}
        self._constants: dict[str, _Array | None] = {}

    def constant(self, name: str) -> _Array | None:
        """Return a tensor that does not depend on the input; None if it does, or is computed in an unusual way."""
        if name not in self._constants:
            self._constants[name] = None  # ends the recursion if the graph has a cycle
            self._constants[name] = self._compute(name)
        return self._constants[name]

    def _compute(self, name: str) -> _Array | None:
        from onnx import numpy_helper

        if name in self.initialisers:
            return numpy_helper.to_array(self.initialisers[name])
        node = self.makers.get(name)
        if node is None:
            return None
        options = _attributes(node)
        if node.op_type == "Constant":
            return numpy_helper.to_array(options["value"]) if "value" in options else None
        if node.op_type not in ("Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze"):
            return None
        array = self.constant(node.input[0])
        if array is None or node.op_type in ("Identity", "Cast"):
            return array
        if node.op_type == "Transpose":
            return array.transpose(options.get("perm"))
        shape = self.constant(node.input[1]) if len(node.input) > 1 else None
        if node.op_type == "Reshape" and shape is not None and 0 not in shape:
            return array.reshape(shape)
        if node.op_type == "Squeeze":
            return array.squeeze()
        return None

    def layers(self) -> list[_Layer]:
        """Return the layers in the order of a walk from the output, along the first inputs first."""
        layers: dict[str, _Layer] = {}
        for node in self._walk():
            layer = self._layer(node)
            if layer is not None:
                layers[node.output[0]] = layer
            elif node.op_type == "Add":
                self._add_bias(node, layers)
        return list(layers.values())

    def _walk(self) -> Iterator[onnx.NodeProto]:
        entered: set[str] = set()
        stack = [(name, False) for name in reversed(self.outputs)]
        while stack:
            name, has_inputs = stack.pop()
            node = self.makers.get(name)
            if node is None:
                continue
            if has_inputs:
                yield node
            elif node.output[0] not in entered:
                entered.add(node.output[0])
                stack.append((name, True))
                stack.extend((given, False) for given in reversed(node.input) if given)

    def _layer(self, node: onnx.NodeProto) -> _Layer | None:
        if node.op_type == "BatchNormalization":
            arrays = [self.constant(name) for name in node.input[1:5]]
            epsilon = _attributes(node).get("epsilon", 1e-5)
            if any(array is None for array in arrays):
                return None
            found = [array for array in arrays if array is not None]
            if abs(epsilon - BN_EPSILON) > 1e-9:
                found[3] = (found[3].astype(np.float64) + epsilon - BN_EPSILON).astype(np.float32)
            return _Layer(_NORM, found)
        if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm", "FusedGemm"):
            return None
        weight = self.constant(node.input[1])
        if weight is None or _is_transform(weight):
            return None
        bias = self.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        options = _attributes(node)
        if node.op_type not in ("Conv", "ConvTranspose"):
            if weight.ndim != 2 or options.get("transA") or {options.get("alpha", 1), options.get("beta", 1)} != {1}:
                return None
            return _Layer(_DENSE, [weight if options.get("transB") else weight.T], bias)
        if options.get("group", 1) > 1:
            return _Layer(_DEPTHWISE, [weight], bias)
        return _Layer(_CONVOLUTION if node.op_type == "Conv" else _TRANSPOSED, [weight], bias)

    def _add_bias(self, node: onnx.NodeProto, layers: dict[str, _Layer]) -> None:
        """Record the bias of a dense layer, which exporters add in a separate node."""
        for name, other in (node.input, reversed(node.input)):
            layer = layers.get(name)
            bias = self.constant(other)
            if layer is not None and layer.kind == _DENSE and layer.bias is None and bias is not None:
                if bias.shape == (layer.arrays[0].shape[0],):
                    layer.bias = bias
                return


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def _is_transform(weight: _Array) -> bool:
    """Return whether this is a kernel of the STFT or of its inverse, by its length."""
    return FRAME_SAMPLES in weight.shape or FRAME_SAMPLES + 2 in weight.shape


def _by_name(graph: _Graph) -> Weights | None:
    """Return the weights of a graph that has them under their released names; None if it lacks some."""
    from onnx import numpy_helper

    named = {
        name: numpy_helper.to_array(tensor).astype(np.float32)
        for name, tensor in graph.initialisers.items()
        if {"unet", "unet2"}.intersection(name.split("."))
    }
    try:
        return normalise_state_dict(named)
    except ModelError:
        return None


@dataclass
class _Reader:
    """Reads the layers of a graph in order, and turns them into parameters."""

    layers: list[_Layer]
    weights: dict[str, _Array] = field(default_factory=dict)
    place: int = 0

    def take(self, kind: str, name: str) -> _Layer:
        """Take the next layer, which must be of this kind."""
        if self.place == len(self.layers):
            raise ModelError(f"its graph ends where an FRCRN has {name} ({kind}), after {self.place} layers")
        layer = self.layers[self.place]
        if layer.kind != kind:
            raise ModelError(
                f"layer {self.place + 1} of its graph is a {layer.kind} {layer.arrays[0].shape} where an FRCRN has "
                f"{name} ({kind})"
            )
        self.place += 1
        return layer

    def keep(self, name: str, array: _Array) -> None:
        """Record a tensor; if it was met before, it must be the same."""
        array = np.asarray(array, np.float32)
        if not np.array_equal(self.weights.setdefault(name, array), array):
            raise ModelError(f"its graph uses two different tensors where an FRCRN has {name} twice")

    def convolution(self, kind: str, name: str, norm: str | None) -> None:
        """Read a complex convolution and the batch norms behind it, if any; they may be folded."""
        # Real parts of the weights, imaginary ones, and the same again.
        calls = [self.take(kind, f"{name}_{part}") for part in ("re", "im", "re", "im")]
        weights = [call.arrays[0] for call in calls]
        outputs = weights[0].shape[1 if kind == _TRANSPOSED else 0]
        biases = [np.zeros(outputs, np.float32) if call.bias is None else call.bias for call in calls]
        folded = norm is not None and not (self.place < len(self.layers) and self.layers[self.place].kind == _NORM)
        if norm is not None and folded:
            scale = _ratio(weights[2], weights[0], 1 if kind == _TRANSPOSED else 0)
            self._unfolded(norm, np.ones(outputs), biases[0] - biases[1])
            self._unfolded(norm.replace("bn_re", "bn_im"), scale, biases[2] + biases[3])
            biases = [np.zeros(outputs, np.float32)] * 4
            weights[2:] = weights[:2]
        for part, weight, bias in zip(("re", "im", "re", "im"), weights, biases, strict=True):
            self.keep(f"{name}_{part}.weight", weight)
            self.keep(f"{name}_{part}.bias", bias)
        if norm is not None and not folded:
            for part in (norm, norm.replace("bn_re", "bn_im")):
                for tensor, array in zip(_NORM_TENSORS, self.take(_NORM, part).arrays, strict=True):
                    self.keep(f"{part}.{tensor}", array)

    def _unfolded(self, norm: str, scale: _Array, bias: _Array) -> None:
        variance = np.full(len(bias), 1 - BN_EPSILON)
        for tensor, array in zip(_NORM_TENSORS, (scale, bias, np.zeros(len(bias)), variance), strict=True):
            self.keep(f"{norm}.{tensor}", array)

    def fsmn(self, name: str, parts: tuple[str, ...]) -> None:
        """Read single layers of an FSMN: dense layer, projection and filter."""
        for part in parts:
            start = f"{name}.fsmn_{part}"
            self.dense(f"{start}.linear")
            self.keep(f"{start}.project.weight", self.take(_DENSE, f"{start}.project").arrays[0])
            filters = self.take(_DEPTHWISE, f"{start}.conv1").arrays[0]
            self.keep(f"{start}.conv1.weight", filters[..., None] if filters.ndim == 3 else filters)

    def squeeze_excitation(self, name: str) -> None:
        """Read a squeeze-and-excitation."""
        for part in ("r", "i", "r", "i"):
            for index in (0, 2):
                self.dense(f"{name}.fc_{part}.{index}")

    def dense(self, name: str) -> None:
        """Read a dense layer with a bias."""
        layer = self.take(_DENSE, name)
        self.keep(f"{name}.weight", layer.arrays[0])
        self.keep(f"{name}.bias", np.zeros(len(layer.arrays[0])) if layer.bias is None else layer.bias)

    def unet(self, name: str) -> None:
        """Read a U-Net, in the order in which the walk meets its layers."""
        for i in range(STAGES):
            if i > 0:
                self.fsmn(f"{name}.fsmn_enc.{i}", ("re_L1", "im_L1") * 2)
            self.convolution(_CONVOLUTION, f"{name}.encoders.{i}.conv.conv", f"{name}.encoders.{i}.bn.bn_re")
        self.fsmn(f"{name}.fsmn", ("re_L1", "im_L1", "re_L2", "re_L1", "im_L1", "im_L2", "re_L2", "im_L2"))
        for i in range(STAGES):
            self.convolution(_TRANSPOSED, f"{name}.decoders.{i}.transconv.tconv", f"{name}.decoders.{i}.bn.bn_re")
            if i < STAGES - 1:
                self.fsmn(f"{name}.fsmn_dec.{i}", ("re_L1", "im_L1") * 2)
                if i < STAGES - 2:
                    self.squeeze_excitation(f"{name}.se_layers_dec.{i}")
                # Only the skip connection takes the scaled output of an encoder, so it is met here.
                self.squeeze_excitation(f"{name}.se_layers_enc.{STAGES - 2 - i}")
        self.convolution(_CONVOLUTION, f"{name}.linear.conv", None)


def _ratio(scaled: _Array, weight: _Array, axis: int) -> _Array:
    """Return the factor of each output channel between two weights, 1 for channels without weights."""
    scaled, weight = (np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1) for array in (scaled, weight))
    energy = np.sum(weight.astype(np.float64) ** 2, axis=1)
    product = np.sum(scaled.astype(np.float64) * weight, axis=1)
    ratio: _Array = np.divide(product, energy, out=np.ones_like(energy), where=energy > 0)
    return ratio


def _by_place(layers: list[_Layer]) -> Weights:
    """Return the weights of a graph by their places in it."""
    reader = _Reader(layers)
    unets = 0
    while unets == 0 or reader.place < len(layers):
        unets += 1
        reader.unet(f"unet{unets if unets > 1 else ''}")
    return reader.weights


def _is_half(graph: _Graph) -> bool:
    from onnx import TensorProto

    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return any(tensor.data_type in half and len(tensor.dims) > 1 for tensor in graph.initialisers.values())


def _check_agreement(path: Path, weights: Weights, is_half: bool) -> None:
    """Run the graph, and the network with these weights, on noise; compare the outputs."""
    try:
        import torch

        from frcrn_accel.network.module import build_network
    except ImportError as error:
        raise MissingExtraError("Checking an exported graph", "export", error) from error
    audio, outputs = _run(path)
    with torch.inference_mode():
        expected = build_network(weights)(torch.from_numpy(audio[None])).numpy()[0].astype(np.float64)
    agreements = [_agreement_db(output, expected) for output in outputs]
    waveforms = [found for found in agreements if found is not None]
    least = MIN_AGREEMENT_HALF_DB if is_half else MIN_AGREEMENT_DB
    if not waveforms:
        raise ModelError(
            f"none of its graph's outputs is a waveform of the length of its input ({len(audio)} samples): "
            f"{', '.join(str(output.shape) for output in outputs) or 'there is none'}"
        )
    agreement_db = max(waveforms)
    if not agreement_db >= least:
        raise ModelError(
            f"an FRCRN with its weights does not give its graph's output: they agree to {agreement_db:.1f} dB on "
            f"noise (at least {least:.0f}), so it is another network or a changed one"
        )


def _run(path: Path) -> tuple[NDArray[np.float32], list[_Array]]:
    """Run a graph on noise; return the noise, and every output."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("Checking an exported graph", "export", error) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # takes longer than the run
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        (given,) = session.get_inputs()
        shape = [size if isinstance(size, int) and size > 0 else 1 for size in given.shape]
        fixed = given.shape[-1] if given.shape and isinstance(given.shape[-1], int) else None
        samples = SAMPLE_RATE_HZ if fixed is None else fixed
        if not shape or max(shape[:-1], default=1) != 1 or not FRAME_SAMPLES <= samples <= _MAX_FIXED_SAMPLES:
            raise ModelError(f"its graph takes {given.shape} instead of a waveform, such as (1, samples)")
        audio = (0.056 * np.random.default_rng(0).standard_normal(samples)).astype(np.float32)
        dtype = np.float16 if "float16" in given.type else np.float32
        outputs = session.run(None, {given.name: audio.astype(dtype).reshape([*shape[:-1], samples])})
    except ModelError:
        raise
    except Exception as error:  # ONNX Runtime raises a dozen unrelated classes
        raise ModelError(f"its graph cannot be run on a waveform: {one_line(error)}") from error
    return audio, [np.asarray(output, np.float64) for output in outputs]


def _agreement_db(output: _Array, expected: _Array) -> float | None:
    """Return the energy of the expected output over that of the difference, in dB; None if it is not a waveform.

    It is -inf for an output that is not finite, and if silence is expected. It is never NaN, which `max` may keep or
    drop.

    The first and last 20 ms are left out: exporters pad or cut the end, and PyTorch's exporter drops the 1e-8 that
    keeps upstream from dividing 0 by 0 in the very first sample.
    """
    if output.size != max(output.shape, default=0) or abs(output.size - len(expected)) > 2 * HOP_SAMPLES:
        return None
    inner = slice(HOP_SAMPLES, min(output.size, len(expected)) - HOP_SAMPLES)
    difference = float(np.sum((output.reshape(-1)[inner] - expected[inner]) ** 2))
    energy = float(np.sum(expected[inner] ** 2))
    if not np.isfinite(difference) or energy == 0:
        return -np.inf
    return np.inf if difference == 0 else 10 * np.log10(energy / difference)
