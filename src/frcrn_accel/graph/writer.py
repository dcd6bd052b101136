"""A small writer of ONNX graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["CONTRIB", "OPSET", "GraphWriter", "Shape"]

Shape = tuple[int | str | None, ...]  # axes of one name have equal lengths; None is any length

OPSET = 17
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators
IR_VERSIONS = {17: 8, 19: 9}  # released with the opset, so that engines of that time read the file


class GraphWriter:
    """Collects nodes and tensors. Methods that add something return the name of its output.

    Args:
        weights: Tensors that `weight` can refer to. The file holds those that are used, once each, by their names.
    """

    opset: ClassVar[int] = OPSET

    def __init__(self, weights: Mapping[str, NDArray[Any]]) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scope: list[str] = []
        self._counts: dict[str, int] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes that are added inside: `unet/encoders.0/Conv_1`."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    @property
    def current_scope(self) -> str:
        """Open scopes, outermost first, joined by dots: `unet.encoders.0`."""
        return ".".join(self._scope)

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output."""
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs."""
        name = self._name(kind)
        if kind == "Split" and self.opset >= 18:  # before 18 it was implied by the outputs
            attributes["num_outputs"] = outputs
        names = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names

    def weight(self, key: str) -> str:
        """Refer to a weight by its key."""
        if key not in self._tensors:
            self._tensors[key] = numpy_helper.from_array(np.ascontiguousarray(self._weights[key]), key)
        return key

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """Add a constant; equal ones are stored once."""
        array = np.asarray(value, dtype)
        identity = (array.dtype.str, array.shape, array.tobytes())
        if identity not in self._constants:
            name = self._constants[identity] = f"constant_{len(self._constants)}"
            self._tensors[name] = numpy_helper.from_array(array, name)
        return self._constants[identity]

    def ints(self, *values: int) -> str:
        """Add a vector of int64, as operators take shapes and axes."""
        return self.constant(values, np.int64)

    def build(
        self,
        audio_in: str,
        audio_out: str,
        name: str,
        producer_version: str,
        properties: Mapping[str, str],
        *,
        batch: str | int = "batch",
        more_inputs: Mapping[str, Shape] = MappingProxyType({}),
        more_outputs: Mapping[str, Shape] = MappingProxyType({}),
    ) -> onnx.ModelProto:
        """Build the model, with `float32 (batch, samples)` in and out.

        Args:
            audio_in: Name of the input in the nodes.
            audio_out: New name for the output of the last node.
            name: Name of the graph.
            producer_version: Version of this library.
            properties: Metadata for the file.
            batch: Size of the batch, or the name of a dynamic axis.
            more_inputs: Further float inputs, by their names in the nodes.
            more_outputs: Further float outputs, by their names in the nodes.
        """
        self._nodes[-1].output[0] = audio_out
        inputs: dict[str, Shape] = {audio_in: (batch, "samples"), **more_inputs}
        outputs: dict[str, Shape] = {audio_out: (batch, "samples_out"), **more_outputs}
        inputs_and_outputs = [
            [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, shape) for tensor, shape in tensors.items()]
            for tensors in (inputs, outputs)
        ]
        graph = helper.make_graph(
            self._nodes, name, inputs_and_outputs[0], inputs_and_outputs[1], list(self._tensors.values())
        )
        opsets = [helper.make_opsetid("", self.opset)]
        if any(node.domain == CONTRIB for node in self._nodes):
            opsets.append(helper.make_opsetid(CONTRIB, 1))
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSIONS[self.opset],
            producer_name="frcrn-accel",
            producer_version=producer_version,
        )
        helper.set_model_props(model, dict(properties))
        onnx.checker.check_model(model, full_check=True)
        return model

    def _name(self, kind: str) -> str:
        path = "".join(f"{part}/" for part in self._scope) + kind
        self._counts[path] = self._counts.get(path, -1) + 1
        return f"{path}_{self._counts[path]}" if self._counts[path] else path
