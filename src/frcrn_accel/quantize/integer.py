"""FRCRN as an ONNX graph of 8-bit operators, for ONNX Runtime on a CPU.

Speed:

- Activations are channels-last, so a convolution is a gather of rows (`gather`) and one integer matrix product. The
  integer convolutions for the order `(channels, frequency, time)` are slow.
- A transposed convolution of stride 2 along frequency is one product too: the two output rows of a pair lie side by
  side in the columns of the product, which is also their order in memory.
- The FSMN along frequency (feedforward sequential memory network) stays in 8 bits from its input to the sum of its
  memories.

Quality:

- Every frame has its own range. A spectrogram spans 60 dB and more over time; with a single range the quiet frames
  would be left with a few quantization levels.
- A convolution takes two frames, which must share a scale. Each frame is therefore quantized twice, once for each
  product that it takes part in, to the larger range of the two frames of that product.
- Inside the FSMN values are relative to the peak of the frame's input. The FSMN is linear along frequency except for
  the ReLU and the bias before it. The bias does not scale with the frame: it enters as four more input channels that
  hold the inverse of the scale.
- Batch norm has a scale for each part. It is multiplied with the scales of the columns, so the two parts share their
  integer blocks.
- The first and the last layer, the mask and squeeze-and-excitation are in float (`channels_last`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.graph.common import Pair, encoder_bins
from frcrn_accel.graph.timeline import TIME, MakeTimeline, WholePass
from frcrn_accel.graph.writer import CONTRIB
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import (
    DECODER_KERNELS,
    ENCODER_KERNELS,
    FSMN_ORDER,
    LEAKY_SLOPE,
    STAGES,
    Config,
    required_config,
)
from frcrn_accel.quantize.channels_last import SMALLEST_PEAK, Activation, ChannelsLastNetwork
from frcrn_accel.quantize.compact import CompactWriter, round_convolution, rounded, scale_of
from frcrn_accel.quantize.gather import GatherLayout
from frcrn_accel.quantize.ranges import Ranges

__all__ = ["IntegerNetwork", "group_names"]

ZERO = 128  # zero point of signed activations
LEVELS = 127  # from there to the peak
# LeakyReLU's output is positive except for a hundredth of the negative values: nearly all levels are above zero.
RECTIFIED_ZERO = 7
RECTIFIED_LEVELS = 248
BIAS_CHANNELS = 4


def group_names(config: Config) -> tuple[str, ...]:
    """Return the layer groups that can be kept in float, convolutions and FSMN blocks, in the network's order."""
    names = []
    for unet in config.unet_names:
        for i in range(1, STAGES):
            names += [f"{unet}.fsmn_enc.{i}", f"{unet}.encoders.{i}"]
        for i in range(STAGES - 1):
            names += [f"{unet}.decoders.{i}", f"{unet}.fsmn_dec.{i}"]
    return tuple(names)


class IntegerNetwork(ChannelsLastNetwork):
    """Writes the network with integer products.

    Args:
        weights: As `network.checkpoint.load_checkpoint` returns them.
        ranges: Ranges of activations.
        keep_float: Names of `group_names` to compute in float.
        timeline: See `Network`.
    """

    def __init__(
        self, weights: Weights, ranges: Ranges, keep_float: frozenset[str], timeline: MakeTimeline = WholePass
    ) -> None:
        config = required_config(weights)
        self.weights: dict[str, NDArray[Any]] = dict(weights)  # quantized tensors replace the originals
        super().__init__(CompactWriter(self.weights, keep_float), config, timeline)
        for unet in config.unet_names:
            for i in range(STAGES):
                if not self.time.looks_ahead(i):  # both taps take the same frame: add them up
                    for part in ("re", "im"):
                        key = f"{unet}.decoders.{i}.transconv.tconv_{part}.weight"
                        self.weights[key] = self.weights[key].sum(axis=3, keepdims=True)
        self.ranges = ranges
        self.keep_float = keep_float
        self._indices: dict[tuple[GatherLayout, int], str] = {}

    # Convolutions as integer products.

    def encoder(self, name: str, x: Activation) -> Activation:
        """Add a convolution of stride 2 along frequency, with a frame of zeros before and after."""
        g = self.graph
        c = self.config.channels
        kernel, _ = ENCODER_KERNELS[int(name.rpartition(".")[2])]
        height = (x.height - kernel) // 2 + 1
        source_rows = tuple(tuple(2 * row + tap for tap in range(kernel)) for row in range(height))
        is_float = name in self.keep_float
        re, im = self._convolution_weights(f"{name}.conv.conv", 0, is_float=is_float)
        products = []
        for which in (0, 1):
            weight = g.op("Reshape", self.block_row(re, im, which), g.ints(c, 2, c, kernel, 2))
            weight = g.op("Transpose", weight, perm=[1, 4, 3, 2, 0])  # (part, time, frequency, input, output)
            products.append(g.op("Reshape", weight, g.ints(-1, c)))
        x = self.of_two_frames(x)
        layout = GatherLayout((x.rows, x.rows), source_rows, times=2, pad_time=not self.time.is_stepwise)
        rows, scales = self._gathered(name, [x], layout, is_float=is_float)
        y = self._products(rows, products, name, "conv.conv", 1, is_float=is_float)
        more_frames = x.more_frames + layout.more_frames
        return self._activated(name, "conv.conv", y, scales, height, height, more_frames)

    def decoder(self, name: str, inputs: list[Activation]) -> Activation:
        """Add a transposed convolution of stride 2 along frequency.

        An output frame takes two input frames, or one in a step with less look-ahead. Row pair `n`, rows `2 n` and
        `2 n + 1`, takes taps `2 j` and `2 j + 1` of input row `n - j`.
        """
        g = self.graph
        c = self.config.channels
        kernel, _ = DECODER_KERNELS[int(name.rpartition(".")[2])]
        height = inputs[0].height
        half = (kernel + 1) // 2
        pairs = height + half - 1
        source_rows = tuple(
            tuple(pair - back if 0 <= pair - back < height else None for back in range(half)) for pair in range(pairs)
        )
        is_float = name in self.keep_float
        times = self.decoder_frames(name)
        re, im = self._convolution_weights(f"{name}.transconv.tconv", 1, is_float=is_float)
        blocks = len(inputs)  # the stage before, and the skip connection
        products = []
        for which in (0, 1):
            sides = (re, g.op("Neg", im)) if which == 0 else (im, re)
            weight = g.op(
                "Concat", *[g.op("Reshape", side, g.ints(blocks, 1, c, c, kernel, times)) for side in sides], axis=1
            )
            if kernel % 2:
                missing = np.zeros((blocks, 2, c, c, 1, times))
                weight = g.op("Concat", weight, g.constant(missing, np.float32 if is_float else np.int8), axis=4)
            weight = g.op("Reshape", weight, g.ints(2 * blocks, c, c, half, 2, times))
            weight = g.op("Gather", weight, g.ints(*reversed(range(times))), axis=5)
            # From (part, input, output, tap, row of the pair, time):
            weight = g.op("Transpose", weight, perm=[0, 5, 3, 1, 4, 2])
            products.append(g.op("Reshape", weight, g.ints(-1, 2 * c)))
        if times == 2:
            inputs = [self.of_two_frames(x) for x in inputs]
        part_rows = tuple(x.rows for x in inputs for _ in x.parts)
        layout = GatherLayout(part_rows, source_rows, times, pad_time=False)
        rows, scales = self._gathered(name, inputs, layout, is_float=is_float)
        y = self._products(rows, products, name, "transconv.tconv", 2, is_float=is_float)
        more_frames = inputs[0].more_frames + layout.more_frames
        return self._activated(name, "transconv.tconv", y, scales, 2 * (height - 1) + kernel, 2 * pairs, more_frames)

    def _convolution_weights(self, name: str, output_axis: int, *, is_float: bool) -> Pair:
        """Return both parts of a weight. In int8 they share a scale per output channel, stored as `name.scale`."""
        if not is_float:
            round_convolution(self.weights, name, output_axis)
        return self.pair(name, "weight")

    def _gathered(
        self, name: str, sources: list[Activation], layout: GatherLayout, *, is_float: bool
    ) -> tuple[str, str]:
        """Gather the inputs of each output position into a row.

        Args:
            name: Name of the convolution.
            sources: Its inputs, of equal height.
            layout: The inputs of each output.
            is_float: Do not quantize.

        Returns:
            The rows `(positions, parts * times * taps * channels)`, and the scales of the output frames
            `(output frames,)`, "" in float.
        """
        g = self.graph
        c = self.config.channels
        if is_float:
            padding = g.constant(np.zeros((layout.padding, c)))
            blocks, scales = layout.times * [part for source in sources for part in source.parts], ""
        else:
            padding = g.constant(np.full((layout.padding, c), ZERO), np.uint8)
            blocks, scales = self._quantized_frames(name, sources, layout)
        stack = [padding]
        for block in blocks:
            stack += [g.op("Reshape", block, g.ints(-1, c)), padding]
        index = self._index(layout, sources[0].more_frames)
        rows = g.op("Gather", g.op("Concat", *stack, axis=0), index, axis=0)
        return g.op("Reshape", rows, g.ints(-1, layout.inputs * c)), scales

    def _index(self, layout: GatherLayout, more_frames: int) -> str:
        """Compute the indices of a layout, `(output frames, ...)`. Both U-Nets use the same ones.

        Args:
            layout: The layout.
            more_frames: See `Activation`, for the sources.
        """
        g = self.graph
        key = layout, more_frames
        if key not in self._indices:
            per_output_frame, per_frame, first = layout.coefficients()[:, None]
            i32 = TensorProto.INT32
            frames = g.op("Add", self.frames, g.ints(more_frames))
            out_frames = g.op("Squeeze", g.op("Add", frames, g.ints(layout.more_frames)), g.ints(0))
            frame = g.op("Range", g.constant(0, np.int64), out_frames, g.constant(1, np.int64))
            frame = g.op("Cast", g.op("Unsqueeze", frame, g.ints(1)), to=i32)
            offset = g.op("Mul", g.op("Cast", frames, to=i32), g.constant(per_frame, np.int32))
            offset = g.op("Add", offset, g.constant(first, np.int32))
            of_frame = g.op("Mul", frame, g.constant(per_output_frame, np.int32))
            self._indices[key] = g.op("Add", of_frame, offset)
        return self._indices[key]

    def _quantized_frames(self, name: str, sources: list[Activation], layout: GatherLayout) -> tuple[list[str], str]:
        """Quantize each part for each tap along time, in the order of the layout.

        Returns:
            The parts as the first frames of products, then as the second ones; and the scales of the products.
        """
        g = self.graph
        known = self.ranges.inputs.get(name, ())
        peaks = []
        for i, source in enumerate(sources):
            if known and source.scale:
                peaks.append(g.op("Mul", source.scale, g.constant(known[i])))
            else:
                found = []
                for part in source.parts:
                    found.append(g.op("ReduceMax", part, axes=[0, 2, 3], keepdims=0))
                    found.append(g.op("Neg", g.op("ReduceMin", part, axes=[0, 2, 3], keepdims=0)))
                self.observe_input(name, source, found)
                peaks += found
        peak = g.op("Max", *peaks, g.constant(SMALLEST_PEAK))
        if layout.times == 1:
            scales = g.op("Mul", peak, g.constant(1 / LEVELS))
            return [self._quantized(part, scales) for source in sources for part in source.parts], scales
        edge = g.constant([SMALLEST_PEAK])
        pairs = g.op("Max", g.op("Concat", edge, peak, axis=0), g.op("Concat", peak, edge, axis=0))
        scales = g.op("Mul", pairs, g.constant(1 / LEVELS))  # (frames + 1,)
        as_first = g.op("Slice", scales, g.ints(1), g.ints(np.iinfo(np.int64).max), g.ints(0))
        as_second = g.op("Slice", scales, g.ints(0), g.ints(-1), g.ints(0))
        blocks = [
            self._quantized(part, scale)
            for scale in (as_first, as_second)
            for source in sources
            for part in source.parts
        ]
        return blocks, scales if layout.pad_time else g.op("Slice", scales, g.ints(1), g.ints(-1), g.ints(0))

    def _products(
        self, rows: str, weights: Sequence[str], name: str, convolution: str, repeats: int, *, is_float: bool
    ) -> Pair:
        """Multiply by the weights of each part and the scale of its batch norm, not by frame scales."""
        g = self.graph
        out = []
        for which, weight in enumerate(weights):
            scale, _ = self.batch_norm(name, convolution, which)
            if not is_float:
                scale = g.op("Mul", scale, g.weight(f"{name}.{convolution}.scale"))
            columns = g.op("Concat", *[scale] * repeats, axis=0)
            if is_float:
                out.append(g.op("MatMul", rows, g.op("Mul", weight, columns)))
            else:
                one, zero = g.constant(1.0), g.constant(ZERO, np.uint8)
                out.append(g.op("MatMulIntegerToFloat", rows, weight, one, columns, zero, domain=CONTRIB))
        return out[0], out[1]

    def _activated(
        self, name: str, convolution: str, x: Pair, scales: str, height: int, rows: int, more_frames: int
    ) -> Activation:
        """Apply the scales of the frames, the shift of batch norm, and LeakyReLU."""
        g = self.graph
        out = []
        for which, part in enumerate(x):
            part = g.op("Reshape", part, g.ints(1, -1, rows, self.config.channels))
            if scales:
                part = g.op("Mul", part, g.op("Reshape", scales, g.ints(1, -1, 1, 1)))
            _, shift = self.batch_norm(name, convolution, which)
            out.append(g.op("LeakyRelu", g.op("Add", part, shift), alpha=LEAKY_SLOPE))
        return self.rectified((out[0], out[1]), height, rows, more_frames)

    # FSMN along frequency.

    def fsmn(self, name: str, layer: int, x: Activation, *, along_time: bool) -> Activation:
        """Add an FSMN layer: along frequency in 8 bits unless kept in float; along time, on one row, in float."""
        g = self.graph
        if along_time:
            scale = ""
            memories = self._float_memories(name, layer, x.parts, g.constant([1.0]), along_time=True)
        else:
            floor = self.fsmn_floor(name)
            scale = g.op("Max", x.scale, g.constant(floor))
            if name in self.keep_float:
                memories = self._float_memories(name, layer, x.parts, scale, along_time=False)
            else:
                memories = self._integer_memories(name, x, scale, floor)
        re = g.op("Add", g.op("Sub", *x.parts), memories[0])
        im = g.op("Add", g.op("Add", *x.parts), memories[1])
        return replace(x, parts=(re, im), scale=scale)

    def fsmn_floor(self, name: str) -> float:
        """Return the smallest peak to scale a frame by: where the relative bias is as large as the largest weight.

        In quieter frames the bias dominates, so coarser levels do no harm; and its weights, in the four channels that
        hold the inverse scale, do not widen the range of the other weights.
        """
        nets = [
            (self._fsmn_weight(name, net, "linear.weight"), self._fsmn_weight(name, net, "linear.bias"))
            for net in (0, 1)
        ]
        peaks = [np.abs(bias) / np.maximum(np.abs(weight).max(axis=1), SMALLEST_PEAK) for weight, bias in nets]
        return float(max(np.max(peaks), SMALLEST_PEAK))

    def _integer_memories(self, name: str, x: Activation, scale: str, floor: float) -> Pair:
        """Return the sum of memories and filtered memories of each part, in float, computed in 8 bits."""
        g = self.graph
        c = self.config.channels
        ranges = self.ranges.fsmn[name]
        rectified = g.constant(RECTIFIED_ZERO, np.uint8)
        signed, unsigned, one = g.constant(ZERO, np.uint8), g.constant(0, np.uint8), g.constant(1.0)
        no_offset = g.constant(np.zeros(c), np.int8)
        inputs = self._with_bias_channels(x, scale, floor)

        unit = ranges.memory / LEVELS
        hidden_unit = ranges.hidden / 255
        filtered_unit = max(ranges.filtered, SMALLEST_PEAK)
        stages: list[list[tuple[str, str]]] = []
        for net in (0, 1):
            weight, bias, projection, filters = (
                self._fsmn_weight(name, net, tensor)
                for tensor in ("linear.weight", "linear.bias", "project.weight", "conv1.weight")
            )
            per_channel = bias[:, None] / (BIAS_CHANNELS * floor)
            weight = np.concatenate([weight, np.repeat(per_channel, BIAS_CHANNELS, axis=1)], axis=1)
            key = f"{name}.fsmn_{('re', 'im')[net]}_L1"
            stages.append(
                [
                    self._int8(f"{key}.linear.weight", weight / hidden_unit[net][:, None]),
                    self._int8(f"{key}.project.weight", projection * hidden_unit[net] / unit[:, None]),
                    self._int8(f"{key}.conv1.weight", filters.reshape(c, FSMN_ORDER) / filtered_unit),
                ]
            )

        def convolution(
            y: str, x_scale: str, x_zero: str, weight: tuple[str, str], y_zero: str, *, negative: bool = False
        ) -> str:
            values = g.op("Neg", weight[0]) if negative else weight[0]
            values = g.op("Unsqueeze", values, g.ints(2, 3))
            return g.op(
                "QLinearConv", y, x_scale, x_zero, values, weight[1], no_offset, one, y_zero,
                domain=CONTRIB, channels_last=1, kernel_shape=[1, 1],
            )  # fmt: skip

        def filtered(y: str, weight: tuple[str, str]) -> str:
            return g.op(
                "QLinearConv", y, one, signed, g.op("Unsqueeze", weight[0], g.ints(1, 2)), weight[1], no_offset,
                one, signed, domain=CONTRIB, channels_last=1, group=c, kernel_shape=[1, FSMN_ORDER],
                pads=[0, FSMN_ORDER - 1, 0, 0],
            )  # fmt: skip

        def added(a: str, a_scale: str, b: str, b_scale: str, scale: str) -> str:
            return g.op("QLinearAdd", a, a_scale, signed, b, b_scale, signed, scale, signed, domain=CONTRIB)

        units = [
            g.constant(max(value, SMALLEST_PEAK)) for value in (ranges.memories, ranges.filtered_sum, ranges.total)
        ]
        results = []
        for to in (0, 1):
            memories, filtered_memories = [], []
            for source in (0, 1):
                linear, project, taps = stages[int(to != source)]
                hidden = convolution(inputs[source], g.constant(1 / RECTIFIED_LEVELS), rectified, linear, unsigned)
                memory = convolution(hidden, one, unsigned, project, signed, negative=(to, source) == (0, 1))
                memories.append(memory)
                filtered_memories.append(filtered(memory, taps))
            memory_sum = added(memories[0], one, memories[1], one, units[0])
            scaled = g.constant(filtered_unit)
            filtered_sum = added(filtered_memories[0], scaled, filtered_memories[1], scaled, units[1])
            total = added(memory_sum, units[0], filtered_sum, units[1], units[2])
            zeros = g.op("Expand", signed, g.op("Shape", scale))
            y = g.op("DequantizeLinear", total, g.op("Mul", scale, units[2]), zeros, axis=1)
            results.append(g.op("Mul", y, g.constant(unit)))
        return results[0], results[1]

    def _with_bias_channels(self, x: Activation, scale: str, floor: float) -> Pair:
        """Quantize the parts relative to the scales of their frames, and add channels that hold `floor / scale`.

        The four channels differ by a quarter of a level before they are rounded down, so their sum is four times as
        fine.
        """
        g = self.graph
        share = g.op("Div", g.constant(floor * RECTIFIED_LEVELS), scale)
        quarters = g.constant(RECTIFIED_ZERO + np.arange(BIAS_CHANNELS) / BIAS_CHANNELS)
        held = g.op(
            "Cast", g.op("Floor", g.op("Add", g.op("Unsqueeze", share, g.ints(1)), quarters)), to=TensorProto.UINT8
        )
        shape = g.op("Concat", g.ints(1), g.op("Shape", scale), g.ints(x.rows, BIAS_CHANNELS), axis=0)
        channels = g.op("Expand", g.op("Unsqueeze", held, g.ints(0, 2)), shape)
        level = g.op("Mul", scale, g.constant(1 / RECTIFIED_LEVELS))
        return self.of_both(
            x.parts, lambda part: g.op("Concat", self._quantized(part, level, RECTIFIED_ZERO), channels, axis=3)
        )

    def _float_memories(self, name: str, layer: int, x: Pair, scale: str, *, along_time: bool) -> Pair:
        """Return the same as `_integer_memories` in float, also computed relative to the scale."""
        g = self.graph
        c = self.config.channels
        scale = g.op("Reshape", scale, g.ints(1, -1, 1, 1))
        x = self.of_both(x, lambda part: g.op("Div", part, scale))
        results = []
        for to in (0, 1):
            memories: list[Pair] = []
            filtered: list[Pair] = []
            for source in (0, 1):
                net = int(to != source)
                key = f"{name}.fsmn_{('re', 'im')[net]}_L{layer}"
                bias = g.op("Div", g.weight(f"{key}.linear.bias"), scale)
                linear = g.op("Transpose", g.weight(f"{key}.linear.weight"), perm=[1, 0])
                hidden = g.op("Relu", g.op("Add", g.op("MatMul", x[source], linear), bias))
                self.observe(name, f"hidden/{net}", hidden)
                project = g.op("Transpose", g.weight(f"{key}.project.weight"), perm=[1, 0])
                memory = g.op("MatMul", hidden, g.op("Neg", project) if (to, source) == (0, 1) else project)
                past = FSMN_ORDER - 1
                taps, pads = g.weight(f"{key}.conv1.weight"), [self.time.padding(past), 0, 0, 0]
                filter_input = memory
                if along_time:
                    filter_input = self.time.with_last(memory, past, (1, TIME, encoder_bins()[-1], c))
                else:
                    taps, pads = g.op("Transpose", taps, perm=[0, 1, 3, 2]), [0, past, 0, 0]
                filter_input = g.op("Transpose", filter_input, perm=[0, 3, 1, 2])
                y = g.op("Conv", filter_input, taps, group=c, pads=pads)
                memories.append((memory, filter_input))
                filtered.append((self.channels_last(y), y))
            total = self.total_memory(name, memories, filtered)
            results.append(g.op("Mul", total, scale))
        return results[0], results[1]

    def total_memory(self, name: str, memories: Sequence[Pair], filtered: Sequence[Pair]) -> str:
        """Add up the memories and the filtered memories of one part, each given with channels last and first."""
        g = self.graph
        sums = [g.op("Add", *[last for last, _ in tensors]) for tensors in (memories, filtered)]
        return g.op("Add", *sums)

    def observe(self, name: str, what: str, tensor: str) -> None:
        """Do nothing. A subclass receives the hidden activations of each block in float, relative to the scale."""

    def observe_input(self, name: str, source: Activation, peaks: Sequence[str]) -> None:
        """Do nothing. A subclass receives each source of a convolution in integers, and the peaks of its parts."""

    # Helpers.

    def _quantized(self, x: str, scales: str, zero: int = ZERO) -> str:
        """Quantize to uint8, with a scale per frame."""
        g = self.graph
        zeros = g.op("Expand", g.constant(zero, np.uint8), g.op("Shape", scales))
        return g.op("QuantizeLinear", x, scales, zeros, axis=1)

    def _int8(self, key: str, weight: NDArray[np.float32]) -> tuple[str, str]:
        """Store a matrix as int8 with a scale per row, under its key and `key.scale`."""
        scale = scale_of(weight, (1,))
        self.weights[key] = rounded(weight, scale)
        self.weights[f"{key}.scale"] = scale.reshape(-1)
        return self.graph.weight(key), self.graph.weight(f"{key}.scale")

    def _fsmn_weight(self, name: str, net: int, tensor: str) -> NDArray[np.float32]:
        return self.weights[f"{name}.fsmn_{('re', 'im')[net]}_L1.{tensor}"]
