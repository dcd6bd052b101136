"""FRCRN as an ONNX graph of real-valued operators, each weight stored once, in the form that suits an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx

from frcrn_accel.graph.common import Network
from frcrn_accel.graph.direct import DirectNetwork
from frcrn_accel.graph.gauss import GaussNetwork
from frcrn_accel.graph.half import HalfStorageWriter
from frcrn_accel.graph.plain import PlainNetwork
from frcrn_accel.graph.step import StepNetwork
from frcrn_accel.graph.timeline import MakeTimeline, WholePass
from frcrn_accel.graph.writer import GraphWriter
from frcrn_accel.models import Form
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import config_of

__all__ = ["build_graph"]

_FORMS: dict[Form, type[Network[Any]]] = {
    "gauss": GaussNetwork,
    "direct": DirectNetwork,
    "plain": PlainNetwork,
    "half": PlainNetwork,
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
        weights: As `network.checkpoint.load_checkpoint` gives them.
        name: Name of the graph.
        producer_version: Version of this library.
        properties: Metadata for the file.
        form: `"gauss"`, with fewer multiplications, is the form of model files, which every engine runs
            (`graph.gauss`). `"direct"`, with fewer and larger operators, is for matrix units and low precision
            (`graph.direct`). `"plain"` is the direct form without transposed convolutions, for GPUs
            (`graph.plain`), and `"half"` is the plain form in float16 (`graph.half`). `"step"` is the plain form with
            fewer operators, for the steps of streams only (`graph.step`). All but `"half"` differ in rounding only.
        writer: What writes the operators: a subclass may store and compute otherwise. By default all is fp32.
        timeline: `Stepwise` for a step of a stream (`graph.timeline`), in all forms but `"gauss"`.
    """
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    if writer is None:
        writer = HalfStorageWriter(weights) if form == "half" else GraphWriter(weights)
    network = _FORMS[form](writer, config, timeline)
    return network.build(name, producer_version, properties)
