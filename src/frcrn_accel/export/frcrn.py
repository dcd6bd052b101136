"""FRCRN as an ONNX graph of real-valued operators, each weight stored once, in the form that suits an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import onnx

from frcrn_accel.export.direct import DirectNetwork
from frcrn_accel.export.gauss import GaussNetwork
from frcrn_accel.export.graph import GraphWriter
from frcrn_accel.export.network import Network
from frcrn_accel.export.plain import PlainNetwork
from frcrn_accel.export.step import StepNetwork
from frcrn_accel.export.timeline import MakeTimeline, WholePass
from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.model.topology import config_of

__all__ = ["Form", "build_graph"]

Form = Literal["gauss", "direct", "plain", "step"]

_FORMS: dict[Form, type[Network[Any]]] = {
    "gauss": GaussNetwork,
    "direct": DirectNetwork,
    "plain": PlainNetwork,
    "step": StepNetwork,
}


def build_graph(
    weights: Weights,
    name: str,
    producer_version: str,
    properties: Mapping[str, str],
    form: Form = "gauss",
    writer: GraphWriter | None = None,
    timeline: MakeTimeline = WholePass,
) -> onnx.ModelProto:
    """The whole network, `float32 (batch, samples)` to `float32 (batch, samples - samples % 320)`.

    Args:
        weights: As `model.checkpoint.load_checkpoint` gives them.
        name: Name of the graph.
        producer_version: Version of this library.
        properties: Metadata for the file.
        form: `"gauss"`, fewer multiplications, is what model files hold and every engine runs (`export.gauss`);
            `"direct"`, fewer and larger operators, is for matrix units and low precision (`export.direct`), and
            `"plain"` is that without transposed convolutions, for GPUs (`export.plain`); `"step"` is the plain one
            with fewer operators still, for steps of streams only (`export.step`). They differ in rounding only.
        writer: What writes the operators: a subclass may store and compute otherwise. By default all is fp32.
        timeline: `Stream` for a step of a stream (`export.timeline`), in all forms but `"gauss"`.
    """
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    network = _FORMS[form](writer or GraphWriter(weights), config, timeline)
    return network.build(name, producer_version, properties)
