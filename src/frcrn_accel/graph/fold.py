"""Fold constants: compute in advance what depends on constants alone."""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = ["fold_constants"]


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph in which everything that does not depend on an input is a stored value.

    A model file stores each weight once, under its released name, and prepares it with operators. Engines fold these
    when they load the file, but not all do it well. TensorRT refuses integers that are not the input of a
    `DequantizeLinear`, so these nodes stay, with their integers.

    Args:
        model: A graph of this library. It is not changed.
    """
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    constant: list[onnx.NodeProto] = []
    rest: list[onnx.NodeProto] = []
    names = set(known)
    for node in model.graph.node:
        is_constant = node.op_type != "DequantizeLinear" and names.issuperset(node.input)
        (constant if is_constant else rest).append(node)
        if is_constant:
            names.update(node.output)
    wanted = sorted({name for node in rest for name in node.input} & names)
    computed = [name for name in wanted if name not in known]
    values = {}
    if computed:
        graph = helper.make_graph(
            constant, "constants", [], [onnx.ValueInfoProto(name=name) for name in computed], list(known.values())
        )
        part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        found = ReferenceEvaluator(part).run(None, {})
        values = {name: numpy_helper.from_array(value, name) for name, value in zip(computed, found, strict=True)}
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    del folded.graph.node[:], folded.graph.initializer[:]
    folded.graph.node.extend(rest)
    folded.graph.initializer.extend(values.get(name) or known[name] for name in wanted)
    return folded
