"""FRCRN as an ONNX graph of real-valued operators, each weight stored once.

Complex tensors are real ones with twice the channels, real parts first, as in `model.network`. The block weights
`[[Wr, -Wi], [Wi, Wr]]` and the folded batch norms are written as operators on the stored tensors, under the
released key names; they depend on constants only, so an engine computes them once, when it loads the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from frcrn_accel.export.graph import GraphWriter
from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.model.topology import (
    BN_EPSILON,
    FSMN_ORDER,
    HOP_SAMPLES,
    LEAKY_SLOPE,
    STAGES,
    STFT_BINS,
    Config,
    config_of,
    stft_kernel,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["build_graph"]


def build_graph(weights: Weights, name: str, producer_version: str, properties: Mapping[str, str]) -> onnx.ModelProto:
    """The whole network, `float32 (batch, samples)` to `float32 (batch, samples - samples % 320)`."""
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    network = _Network(GraphWriter(weights), config)
    network.waveform_to_waveform("audio")
    return network.graph.build("audio", "denoised", name, producer_version, properties)


class _Network:
    """Writes the parts of the network; methods take and return names of tensors."""

    def __init__(self, graph: GraphWriter, config: Config) -> None:
        self.graph = graph
        self.config = config

    def waveform_to_waveform(self, audio: str) -> None:
        g = self.graph
        with g.scope("stft"):
            kernel = g.constant(stft_kernel()[:, None])
            channel = g.op("Unsqueeze", audio, g.ints(1))
            spectrum = g.op("Conv", channel, kernel, strides=[HOP_SAMPLES])
            spectrum = g.op("Reshape", spectrum, g.ints(0, 2, STFT_BINS, -1))
        x, masks = spectrum, []
        for unet in self.config.unet_names:
            with g.scope(unet):
                x = self.unet(unet, x)
                masks.append(g.op("Tanh", x))
        mask = masks[0] if len(masks) == 1 else g.op("Sum", *masks)
        with g.scope("mask"):
            a, b = g.ops("Split", 2, spectrum, axis=1)
            c, d = g.ops("Split", 2, mask, axis=1)
            re = g.op("Sub", g.op("Mul", a, c), g.op("Mul", b, d))
            im = g.op("Add", g.op("Mul", a, d), g.op("Mul", b, c))
            clean = g.op("Concat", re, im, axis=1)
        with g.scope("istft"):
            clean = g.op("Reshape", clean, g.ints(0, 2 * STFT_BINS, -1))
            scaled = g.op("Mul", kernel, g.constant(stft_synthesis_scale()[:, None, None]))
            audio = g.op("ConvTranspose", clean, scaled, strides=[HOP_SAMPLES])
            # The sum of the squared windows over each sample: 1 but in the first and the last hop.
            frames = g.op("Slice", clean, g.ints(0, 0), g.ints(1, 1), g.ints(0, 1))
            ones = g.op("Add", g.op("Mul", frames, g.constant(0.0)), g.constant(1.0))
            window = g.constant((stft_window() ** 2)[None, None])
            overlap = g.op("ConvTranspose", ones, window, strides=[HOP_SAMPLES])
            audio = g.op("Div", audio, g.op("Add", overlap, g.constant(1e-8)))
            g.op("Squeeze", audio, g.ints(1))

    def unet(self, name: str, x: str) -> str:
        g = self.graph
        skips = []
        for i in range(STAGES):
            if i > 0:
                with g.scope(f"fsmn_enc.{i}"):
                    x = self.fsmn(f"{name}.fsmn_enc.{i}", 1, x, axis=2)
            with g.scope(f"encoders.{i}"):
                x = self.convolution(f"{name}.encoders.{i}", x)
            if i < STAGES - 1:
                with g.scope(f"se_layers_enc.{i}"):
                    skips.append(self.squeeze_excitation(f"{name}.se_layers_enc.{i}", x))
        for layer in (1, 2):
            with g.scope(f"fsmn.L{layer}"):
                x = self.fsmn(f"{name}.fsmn", layer, x, axis=3)
        for i in range(STAGES):
            with g.scope(f"decoders.{i}"):
                parts = [x, skips.pop()] if i > 0 else [x]
                x = self.transposed_convolution(f"{name}.decoders.{i}", parts)
            if i < STAGES - 1:
                with g.scope(f"fsmn_dec.{i}"):
                    x = self.fsmn(f"{name}.fsmn_dec.{i}", 1, x, axis=2)
            if i < STAGES - 2:
                with g.scope(f"se_layers_dec.{i}"):
                    x = self.squeeze_excitation(f"{name}.se_layers_dec.{i}", x)
        with g.scope("linear"):
            weight, bias = self.complex_weight(f"{name}.linear.conv", outputs_axis=0)
            return g.op("Conv", x, weight, bias)

    def convolution(self, name: str, x: str) -> str:
        g = self.graph
        weight, bias = self.complex_weight(f"{name}.conv.conv", outputs_axis=0)
        weight, bias = self.fold_batch_norm(f"{name}.bn", weight, bias, outputs_axis=0)
        y = g.op("Conv", x, weight, bias, strides=[2, 1], pads=[0, 1, 0, 1])
        return g.op("LeakyRelu", y, alpha=LEAKY_SLOPE)

    def transposed_convolution(self, name: str, parts: list[str]) -> str:
        g = self.graph
        c = self.config.channels
        weight, bias = self.complex_weight(f"{name}.transconv.tconv", outputs_axis=1)
        if len(parts) == 2:
            # The released order is (x.re, skip.re, x.im, skip.im); plain concatenation wants (x, skip).
            order = np.arange(4 * c).reshape(2, 2, c).transpose(1, 0, 2).reshape(-1)
            weight = g.op("Gather", weight, g.ints(*order), axis=0)
        weight, bias = self.fold_batch_norm(f"{name}.bn", weight, bias, outputs_axis=1)
        x = g.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        y = g.op("ConvTranspose", x, weight, bias, strides=[2, 1], pads=[0, 1, 0, 1])
        return g.op("LeakyRelu", y, alpha=LEAKY_SLOPE)

    def complex_weight(self, name: str, outputs_axis: int) -> tuple[str, str]:
        """Weight and bias of the real convolution that is the complex one stored as `name_re`, `name_im`."""
        g = self.graph
        w_re, w_im = g.weight(f"{name}_re.weight"), g.weight(f"{name}_im.weight")
        b_re, b_im = g.weight(f"{name}_re.bias"), g.weight(f"{name}_im.bias")
        inputs_axis = 1 - outputs_axis
        to_re = g.op("Concat", w_re, g.op("Neg", w_im), axis=inputs_axis)
        to_im = g.op("Concat", w_im, w_re, axis=inputs_axis)
        weight = g.op("Concat", to_re, to_im, axis=outputs_axis)
        return weight, g.op("Concat", g.op("Sub", b_re, b_im), g.op("Add", b_re, b_im), axis=0)

    def fold_batch_norm(self, name: str, weight: str, bias: str, outputs_axis: int) -> tuple[str, str]:
        g = self.graph

        def both(tensor: str) -> str:
            re, im = (g.weight(f"{name}.bn_{part}.{tensor}") for part in ("re", "im"))
            return g.op("Concat", re, im, axis=0)

        deviation = g.op("Sqrt", g.op("Add", both("running_var"), g.constant(BN_EPSILON)))
        scale = g.op("Div", both("weight"), deviation)
        shape = [1, 1, 1, 1]
        shape[outputs_axis] = -1
        weight = g.op("Mul", weight, g.op("Reshape", scale, g.ints(*shape)))
        centred = g.op("Sub", bias, both("running_mean"))
        return weight, g.op("Add", g.op("Mul", centred, scale), both("bias"))

    def fsmn(self, name: str, layer: int, x: str, axis: int) -> str:
        """`re(x.re) - im(x.im)` and `re(x.im) + im(x.re)`, each net with a residual of its own."""
        g = self.graph

        def pair(tensor: str) -> tuple[str, str]:
            re, im = (g.weight(f"{name}.fsmn_{part}_L{layer}.{tensor}") for part in ("re", "im"))
            return re, im

        def pointwise(weight: str) -> str:
            return g.op("Unsqueeze", weight, g.ints(2, 3))

        # Four streams: re(x.re), im(x.re), re(x.im), im(x.im).
        linear = g.op("Concat", *pair("linear.weight") * 2, axis=0)
        bias = g.op("Concat", *pair("linear.bias") * 2, axis=0)
        hidden = g.op("Relu", g.op("Conv", x, pointwise(linear), bias, group=2))
        project = g.op("Concat", *pair("project.weight") * 2, axis=0)
        memory = g.op("Conv", hidden, pointwise(project), group=4)
        # The identity joins the filter as its last tap.
        filters = g.op("Concat", *pair("conv1.weight") * 2, axis=0)
        tap = np.zeros((1, 1, FSMN_ORDER, 1), np.float32)
        tap[0, 0, -1, 0] = 1
        filters = g.op("Add", filters, g.constant(tap))
        past = FSMN_ORDER - 1
        if axis == 3:
            filters = g.op("Transpose", filters, perm=[0, 1, 3, 2])
        pads = [past, 0, 0, 0] if axis == 2 else [0, past, 0, 0]
        c = self.config.channels
        streams = g.op("Conv", memory, filters, group=4 * c, pads=pads)
        re_re, im_re, re_im, im_im = g.ops("Split", 4, streams, axis=1)
        re, im = g.ops("Split", 2, x, axis=1)
        re, im = (
            g.op("Sub", g.op("Add", re, re_re), g.op("Add", im, im_im)),
            g.op("Add", g.op("Add", im, re_im), g.op("Add", re, im_re)),
        )
        return g.op("Concat", re, im, axis=1)

    def squeeze_excitation(self, name: str, x: str) -> str:
        g = self.graph

        def excite(part: str, means: str) -> str:
            for layer, activation in ((0, "Relu"), (2, "Sigmoid")):
                weight = g.op("Transpose", g.weight(f"{name}.fc_{part}.{layer}.weight"), perm=[1, 0])
                means = g.op("MatMul", means, weight)
                means = g.op(activation, g.op("Add", means, g.weight(f"{name}.fc_{part}.{layer}.bias")))
            return means

        means = g.op("ReduceMean", x, axes=[2, 3], keepdims=0)
        re, im = g.ops("Split", 2, means, axis=1)
        scale_re = g.op("Sub", excite("r", re), excite("i", im))
        scale_im = g.op("Add", excite("r", im), excite("i", re))
        scale = g.op("Concat", scale_re, scale_im, axis=1)
        return g.op("Mul", x, g.op("Unsqueeze", scale, g.ints(2, 3)))
