"""Build FRCRN as an ONNX graph of real-valued operators, in the form for an engine. Weights are stored once."""

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
from frcrn_accel.network.topology import required_config

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
    """Build the whole network, `float32 (batch, samples)` to `float32 (batch, samples - samples % 320)`.

    Args:
        weights: As `network.checkpoint.load_checkpoint` returns them.
        name: Name of the graph.
        producer_version: Version of this library.
        properties: Metadata for the file.
        form: Arrangement of the operators. `"gauss"` has the fewest multiplications; model files have this form, and
            every engine runs it (`graph.gauss`). `"direct"` has fewer and larger operators, for matrix units and low
            precision (`graph.direct`). `"plain"` is the direct form without transposed convolutions, for GPUs
            (`graph.plain`), and `"half"` is the plain form in float16 (`graph.half`). `"step"` is the plain form with
            fewer operators, for steps of streams only (`graph.step`). All except `"half"` differ only in rounding.
        writer: Writer of the graph; a subclass can change storage and precision. By default all is fp32.
        timeline: `Stepwise` for a step of a stream (`graph.timeline`), in all forms except `"gauss"`.

    Raises:
        ValueError: These are not the weights of an FRCRN.
    """
    if writer is None:
        writer = HalfStorageWriter(weights) if form == "half" else GraphWriter(weights)
    network = _FORMS[form](writer, required_config(weights), timeline)
    return network.build(name, producer_version, properties)
