"""FRCRN as an ONNX graph of 8-bit operators, for ONNX Runtime on a CPU.

What makes it fast:

- Activations are channels-last, `(1, time, frequency, channels)`, so a convolution is a gathering of rows and one
  integer matrix product; the integer convolutions for the `(channels, frequency, time)` order are slow.
- A transposed convolution of stride 2 along frequency is one product too: its two output rows of a pair lie side by
  side in the columns of the product, and so in their order in memory.
- The frequency recurrence (FSMN) stays in 8 bits from its input to the sum of its memories.

What keeps the sound:

- Every frame has a range of its own. A spectrogram spans 60 dB and more over time; with one range for all of it the
  quiet frames are left with a few steps. All that a window's result depends on is the window.
- A convolution takes in two frames, which must have one scale: each frame is quantized twice, once for each product
  that it takes part in, to the larger range of the two frames of that product.
- Within the FSMN the values are relative to the peak of the frame's input. It is linear along frequency but for the
  ReLU and the bias in front of it; the bias, which does not scale with the frame, comes in as four more input
  channels that hold the scale.
- Batch norm has a scale of its own for each part. It goes with the scales of the columns, so the two parts share
  their integer blocks.
- The first and the last layer, the mask and squeeze-and-excitation are in float.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.graph.common import FrequencyLastNetwork, Pair, encoder_bins
from frcrn_accel.graph.timeline import TIME, MakeTimeline, WholePass
from frcrn_accel.graph.writer import CONTRIB, Shape
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import (
    DECODER_KERNELS,
    ENCODER_KERNELS,
    FSMN_ORDER,
    LEAKY_SLOPE,
    STAGES,
    STFT_BINS,
    Config,
    config_of,
)
from frcrn_accel.quantize.compact import CompactWriter, round_convolution, rounded, step_of

__all__ = ["Activation", "FsmnRanges", "IntegerNetwork", "Ranges", "group_names"]

ZERO = 128  # zero point of activations that have a sign
STEPS = 127  # from there to the peak
# What LeakyReLU gives is positive but for a hundredth of the negative values: nearly all steps are above zero.
RECTIFIED_ZERO = 7
RECTIFIED_STEPS = 248
BIAS_CHANNELS = 4
SMALLEST_PEAK = 1e-30  # silence has a range too


def group_names(config: Config) -> tuple[str, ...]:
    """What can be kept in float, in the order of the network: convolutions and FSMN blocks."""
    names = []
    for unet in config.unet_names:
        for i in range(1, STAGES):
            names += [f"{unet}.fsmn_enc.{i}", f"{unet}.encoders.{i}"]
        for i in range(STAGES - 1):
            names += [f"{unet}.decoders.{i}", f"{unet}.fsmn_dec.{i}"]
    return tuple(names)


@dataclass(frozen=True)
class FsmnRanges:
    """Largest magnitudes inside one FSMN block, each relative to the peak of the frame's input.

    Attributes:
        hidden: After the ReLU of the real and the imaginary net, `(2, channels)`.
        memory: After the projections, `(channels,)`.
        filtered: After the filters, relative to `memory`.
        memories: The sum of the two memories of one part, relative to `memory`.
        filtered_sum: The sum of the two filtered memories of one part, relative to `memory`.
        total: The sum of all four, relative to `memory`.
    """

    hidden: NDArray[np.float32]
    memory: NDArray[np.float32]
    filtered: float
    memories: float
    filtered_sum: float
    total: float


@dataclass(frozen=True)
class Ranges:
    """What is known of the activations before they are there.

    Attributes:
        fsmn: By name of FSMN block.
        inputs: By name of convolution, for each of its sources: its largest magnitude, relative to the peak of the
            frame at the input of the FSMN block before it. Where there is none, the peaks are looked for in the data.
    """

    fsmn: Mapping[str, FsmnRanges]
    inputs: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def to_json(self) -> str:
        """As text that gives the same numbers again."""
        fsmn = {
            name: {key: _text_of(np.asarray(value, np.float32)) for key, value in vars(ranges).items()}
            for name, ranges in self.fsmn.items()
        }
        return json.dumps({"fsmn": fsmn, "inputs": self.inputs})

    @classmethod
    def from_json(cls, text: str) -> Ranges:
        """What `to_json` made a text of."""
        read = json.loads(text)
        fsmn = {}
        for name, values in read["fsmn"].items():
            arrays = {key: np.frombuffer(base64.b64decode(value), np.float32) for key, value in values.items()}
            numbers = {key: float(array[0]) for key, array in arrays.items() if key not in ("hidden", "memory")}
            fsmn[name] = FsmnRanges(arrays["hidden"].reshape(2, -1), arrays["memory"], **numbers)
        return cls(fsmn, {name: tuple(values) for name, values in read["inputs"].items()})


@dataclass(frozen=True)
class Activation:
    """A complex activation.

    Attributes:
        parts: The tensors of the real and the imaginary part, `(1, frames, rows, channels)`.
        height: Rows that count, along frequency.
        rows: Rows there are. A transposed convolution makes pairs of rows; the last one may be one too many.
        more_frames: Frames, above those of the spectrum; every encoder adds one.
        scale: A tensor `(frames,)` that the magnitude of each frame is known relative to; empty for none.
    """

    parts: Pair
    height: int
    rows: int
    more_frames: int
    scale: str = ""


def _text_of(values: NDArray[np.float32]) -> str:
    return base64.b64encode(values.tobytes()).decode()


class IntegerNetwork(FrequencyLastNetwork[Activation]):
    """Writes the network with integer products.

    Args:
        weights: As `network.checkpoint.load_checkpoint` gives them.
        ranges: What is known of the activations.
        keep_float: Names of `group_names` that are computed in float.
        timeline: See `Network`.
    """

    batch: ClassVar[str | int] = 1  # one window at a time

    def __init__(
        self,
        weights: Weights,
        ranges: Ranges,
        keep_float: frozenset[str],
        timeline: MakeTimeline = WholePass,
    ) -> None:
        config = config_of(weights)
        if config is None:
            raise ValueError("weights hold no FRCRN")
        self.weights: dict[str, NDArray[Any]] = dict(weights)  # what is quantized takes the place of the tensor
        super().__init__(CompactWriter(self.weights, keep_float), config, timeline)
        for unet in config.unet_names:
            for i in range(STAGES):
                if not self.time.looks_ahead(i):  # both taps take the same frame: their sum is one
                    for part in ("re", "im"):
                        key = f"{unet}.decoders.{i}.transconv.tconv_{part}.weight"
                        self.weights[key] = self.weights[key].sum(axis=3, keepdims=True)
        self.ranges = ranges
        self.keep_float = keep_float
        self._indices: dict[tuple[int, ...], str] = {}
        self.frames = ""

    def analysis(self, audio: str, kernel: str) -> str:
        """The spectrum, `(1, 2, frames, 321)`."""
        spectrum = super().analysis(audio, kernel)
        self.frames = self.graph.op("Shape", spectrum, start=2, end=3)
        return spectrum

    # Float layers.

    def first_encoder(self, name: str, spectrum: str) -> Activation:
        """A float convolution, then channels last."""
        g = self.graph
        w_re, w_im = self.pair(f"{name}.conv.conv", "weight")
        spectrum = self.time.with_last(spectrum, 1, self.spectrum_shape)
        pad = self.time.padding(1)

        def part(which: int) -> str:
            scale, shift = self.batch_norm(name, "conv.conv", which)
            weight = g.op("Mul", self.block_row(w_re, w_im, which), g.op("Unsqueeze", scale, g.ints(1, 2, 3)))
            weight = g.op("Transpose", weight, perm=[0, 1, 3, 2])
            y = g.op("Conv", spectrum, weight, shift, strides=[1, 2], pads=[pad, 0, pad, 0])
            return self.channels_last(g.op("LeakyRelu", y, alpha=LEAKY_SLOPE))

        height = (STFT_BINS - ENCODER_KERNELS[0][0]) // 2 + 1
        return self._rectified((part(0), part(1)), height, height, more_frames=pad)

    def last_decoder(self, name: str, x: Activation, skip: Activation, since: int) -> str:
        """See `FrequencyLastNetwork.last_decoder`.

        With so few outputs it is cheapest to multiply each input position by all taps first, `(positions, taps)`, and
        to add up the small result in its places, as two interleaved sets of rows.
        """
        g = self.graph
        c = self.config.channels
        inputs = [x, self.delayed(skip, since, skip.height)]
        taps, _ = DECODER_KERNELS[-1]
        times = self.decoder_frames(name)
        w_re, w_im = self.pair(f"{name}.transconv.tconv", "weight")  # (inputs, 1, taps, times)
        scales, shifts = zip(*(self.batch_norm(name, "transconv.tconv", which) for which in (0, 1)), strict=True)
        # [Wr, -Wi] and [Wi, Wr] as (block, input part, channel, output part, tap, time)
        sides = [
            g.op("Concat", *[g.op("Reshape", side, g.ints(2, 1, c, 1, taps, times)) for side in pair], axis=1)
            for pair in ((w_re, g.op("Neg", w_im)), (w_im, w_re))
        ]
        weight = g.op(
            "Concat", *[g.op("Mul", side, scale) for side, scale in zip(sides, scales, strict=True)], axis=3
        )
        weight = g.op("Reshape", weight, g.ints(4 * c, 2 * taps * times))
        height = inputs[0].height
        products = ""
        for i, part in enumerate(part for source in inputs for part in source.parts):
            rows = g.op("Slice", weight, g.ints(i * c), g.ints(i * c + c), g.ints(0))
            y = g.op("MatMul", part, rows)
            if inputs[i // 2].rows > height:
                y = g.op("Slice", y, g.ints(0), g.ints(height), g.ints(2))
            products = g.op("Add", products, y) if products else y
        if times == 2:
            products = self.time.with_last(products, 1, (1, TIME, height, 2 * taps * times))
        # Output row 2 n + k % 2 takes tap k of input row n - k // 2; output frame t takes time 1 - d of frame t + d.
        places = np.zeros((2, 2, 2, taps, times, times, 3), np.float32)
        for k in range(taps):
            back, odd = divmod(k, 2)
            for time in range(times):
                for which in (0, 1):
                    places[odd, which, which, k, time, times - 1 - time, 2 - back] = 1
        kernel = g.constant(places.reshape(4, 2 * taps * times, times, 3))
        y = g.op("Conv", g.op("Transpose", products, perm=[0, 3, 1, 2]), kernel, pads=[0, 2, 0, 2])
        y = g.op("Reshape", y, g.ints(2, 2, -1, height + 2))
        y = g.op("Reshape", g.op("Transpose", y, perm=[1, 2, 3, 0]), g.ints(1, 2, -1, 2 * height + 4))
        y = g.op("Slice", y, g.ints(0), g.ints(STFT_BINS), g.ints(3))
        shift = g.op("Reshape", g.op("Concat", *shifts, axis=0), g.ints(1, 2, 1, 1))
        return g.op("LeakyRelu", g.op("Add", y, shift), alpha=LEAKY_SLOPE)

    def excited(self, name: str, x: Activation) -> Activation:
        """Scaled by squeeze-and-excitation."""
        g = self.graph
        means = self._means_of_frames(x) if self.time.is_stepwise else self._means(x)
        re, im = (
            g.op("Mul", part, self.channels_last(scale))
            for part, scale in zip(x.parts, self.squeeze_excitation(name, means), strict=True)
        )
        return replace(x, parts=(re, im))

    def _means(self, x: Activation) -> str:
        """Over rows and frames, `(1, 2 * channels, 1, 1)`."""
        g = self.graph
        c = self.config.channels
        # The mean as a product with a row of shares: a reduction along the slow axes takes three times as long.
        shares = self._row_shares(x)
        frames = g.op("Shape", x.parts[0], start=1, end=2)
        per_frame = g.op("Reciprocal", g.op("Cast", g.op("Unsqueeze", frames, g.ints(1)), to=TensorProto.FLOAT))
        row = g.op("Mul", per_frame, g.constant(shares))
        row = g.op("Reshape", g.op("Expand", row, g.op("Concat", frames, g.ints(x.rows), axis=0)), g.ints(1, -1))
        means = [g.op("MatMul", row, g.op("Reshape", part, g.ints(-1, c))) for part in x.parts]
        return g.op("Reshape", g.op("Concat", *means, axis=1), g.ints(1, 2 * c, 1, 1))

    def _means_of_frames(self, x: Activation) -> str:
        """Over rows, and over the frames as a stream has it, `(1, 2 * channels, frames, 1)`."""
        g = self.graph
        row = g.constant(self._row_shares(x)[None, None])
        means = g.op("Concat", *[g.op("MatMul", row, part) for part in x.parts], axis=3)
        means = g.op("Transpose", means, perm=[0, 3, 1, 2])
        return self.time.averaged(means, 2 * self.config.channels)

    @staticmethod
    def _row_shares(x: Activation) -> NDArray[np.float32]:
        """What each row counts for in the mean, `(1, rows)`."""
        shares = np.zeros((1, x.rows), np.float32)
        shares[:, : x.height] = 1 / x.height
        return shares

    def delayed(self, x: Activation, since: int, height: int) -> Activation:
        """See `Timeline.delayed`."""
        return self._along_time(x, lambda tensor, shape: self.time.delayed(tensor, since, shape))

    def of_two_frames(self, x: Activation) -> Activation:
        """With the last frame of before."""
        x = self._along_time(x, lambda tensor, shape: self.time.with_last(tensor, 1, shape))
        return replace(x, more_frames=x.more_frames + 1 - self.time.padding(1))

    def _along_time(self, x: Activation, function: Callable[[str, Shape], str]) -> Activation:
        """A function of a tensor and its shape, on all that an activation has."""
        if not self.time.is_stepwise:
            return x
        g = self.graph
        shape = (1, TIME, x.rows, self.config.channels)
        scale = x.scale
        if scale:  # a state has an axis for the batch, too
            scale = g.op("Squeeze", function(g.op("Unsqueeze", scale, g.ints(0)), (1, TIME)), g.ints(0))
        return replace(x, parts=self._of_both(x.parts, lambda part: function(part, shape)), scale=scale)

    # Convolutions as integer products.

    def encoder(self, name: str, x: Activation) -> Activation:
        """Stride 2 along frequency, a frame of zeros before and after."""
        g = self.graph
        c = self.config.channels
        kernel, _ = ENCODER_KERNELS[int(name.rpartition(".")[2])]
        height = (x.height - kernel) // 2 + 1
        row, tap = np.meshgrid(np.arange(height), np.arange(kernel), indexing="ij")
        is_float = name in self.keep_float
        re, im = self._convolution_weights(f"{name}.conv.conv", 0, is_float=is_float)
        products = []
        for which in (0, 1):
            weight = g.op("Reshape", self.block_row(re, im, which), g.ints(c, 2, c, kernel, 2))
            weight = g.op("Transpose", weight, perm=[1, 4, 3, 2, 0])  # (part, time, frequency, input, output)
            products.append(g.op("Reshape", weight, g.ints(-1, c)))
        x = self.of_two_frames(x)
        pad_time = not self.time.is_stepwise
        rows, scales = self._gathered(name, [x], 2 * row + tap, 2, pad_time=pad_time, is_float=is_float)
        y = self._products(rows, products, name, "conv.conv", 1, is_float=is_float)
        more_frames = x.more_frames + (1 if pad_time else -1)
        return self._activated(name, "conv.conv", y, scales, height, height, more_frames)

    def decoder(self, name: str, inputs: list[Activation]) -> Activation:
        """Transposed, stride 2 along frequency; one frame out of two, or of one in a stream with less look-ahead.

        Row pair `n`, rows `2 n` and `2 n + 1`, takes taps `2 j` and `2 j + 1` of input row `n - j`.
        """
        g = self.graph
        c = self.config.channels
        kernel, _ = DECODER_KERNELS[int(name.rpartition(".")[2])]
        height = inputs[0].height
        half = (kernel + 1) // 2
        pairs = height + half - 1
        row, back = np.meshgrid(np.arange(pairs), np.arange(half), indexing="ij")
        source = np.where((row - back >= 0) & (row - back < height), row - back, -1)
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
        rows, scales = self._gathered(name, inputs, source, times, pad_time=False, is_float=is_float)
        y = self._products(rows, products, name, "transconv.tconv", 2, is_float=is_float)
        more_frames = inputs[0].more_frames + 1 - times
        return self._activated(name, "transconv.tconv", y, scales, 2 * (height - 1) + kernel, 2 * pairs, more_frames)

    def _convolution_weights(self, name: str, output_axis: int, *, is_float: bool) -> Pair:
        """Both parts of a weight; as int8 they share a scale per output channel, stored as `name.scale`."""
        if is_float:
            return self.pair(name, "weight")
        round_convolution(self.weights, name, output_axis)
        return self.pair(name, "weight")

    def _gathered(
        self,
        name: str,
        sources: list[Activation],
        source_rows: NDArray[np.int64],
        times: int,
        *,
        pad_time: bool,
        is_float: bool,
    ) -> tuple[str, str]:
        """The inputs of each output position in a row, and the scale of each output frame.

        Args:
            name: Of the convolution.
            sources: What it takes in, of the same height.
            source_rows: Input row of each (output row, tap along frequency); -1 for none.
            times: Taps along time, 2 or 1.
            pad_time: Start with a frame of zeros and the first, and end with the last and a frame of zeros.
            is_float: Do not quantize.

        Returns:
            `(positions, parts * times * taps * channels)`, and `(output frames,)`, empty in float.
        """
        g = self.graph
        c = self.config.channels
        longest = max(source.rows for source in sources)
        parts = [part for source in sources for part in source.parts]
        if is_float:
            pad = g.constant(np.zeros((longest, c)))
            blocks, scales = times * parts, ""
        else:
            pad = g.constant(np.full((longest, c), ZERO), np.uint8)
            blocks, scales = self._quantized_frames(name, sources, times, pad_time=pad_time)
        stack = [pad]
        for block in blocks:
            stack += [g.op("Reshape", block, g.ints(-1, c)), pad]
        index = self._index(sources, source_rows, times, pad_time=pad_time)
        rows = g.op("Gather", g.op("Concat", *stack, axis=0), index, axis=0)
        return g.op("Reshape", rows, g.ints(-1, len(parts) * times * source_rows.shape[1] * c)), scales

    def _quantized_frames(
        self, name: str, sources: list[Activation], times: int, *, pad_time: bool
    ) -> tuple[list[str], str]:
        """Each part as the first frame of a product, then each as the second; and the scales of the products."""
        g = self.graph
        known = self.ranges.inputs.get(name, ())
        peaks = []
        for i, source in enumerate(sources):
            self.observe_input(name, source)
            if known and source.scale:
                peaks.append(g.op("Mul", source.scale, g.constant(known[i])))
            else:
                for part in source.parts:
                    peaks.append(g.op("ReduceMax", part, axes=[0, 2, 3], keepdims=0))
                    peaks.append(g.op("Neg", g.op("ReduceMin", part, axes=[0, 2, 3], keepdims=0)))
        peak = g.op("Max", *peaks, g.constant(SMALLEST_PEAK))
        if times == 1:
            scales = g.op("Mul", peak, g.constant(1 / STEPS))
            return [self._quantized(part, scales) for source in sources for part in source.parts], scales
        edge = g.constant([SMALLEST_PEAK])
        pairs = g.op("Max", g.op("Concat", edge, peak, axis=0), g.op("Concat", peak, edge, axis=0))
        scales = g.op("Mul", pairs, g.constant(1 / STEPS))  # (frames + 1,)
        as_first = g.op("Slice", scales, g.ints(1), g.ints(np.iinfo(np.int64).max), g.ints(0))
        as_second = g.op("Slice", scales, g.ints(0), g.ints(-1), g.ints(0))
        blocks = [
            self._quantized(part, scale)
            for scale in (as_first, as_second)
            for source in sources
            for part in source.parts
        ]
        return blocks, scales if pad_time else g.op("Slice", scales, g.ints(1), g.ints(-1), g.ints(0))

    def _index(self, sources: list[Activation], source_rows: NDArray[np.int64], times: int, *, pad_time: bool) -> str:
        """Where in the stack of `_gathered` the inputs of each output position are, `(output frames, ...)`.

        The stack is a frame of zeros and then, for the parts as first frames and the parts as second frames, the
        frames of the part and another frame of zeros. Both U-Nets use the same index.
        """
        g = self.graph
        rows = [source.rows for source in sources]
        more_frames = sources[0].more_frames
        key = (*rows, more_frames, times, int(pad_time))
        if key not in self._indices:
            # Of each (output row, part, frame of the product, tap): index = frame * step + frames * per_frame + first
            exists = (source_rows >= 0)[:, None, None, :]
            pad = max(rows)
            step = np.repeat(rows, 2)[:, None, None]  # of each part
            second = np.arange(times)[:, None]
            per_frame = (np.cumsum(step) - step[:, 0, 0])[:, None, None] + second * step.sum()
            pads = pad * (1 + np.arange(len(step))[:, None, None] + len(step) * second)
            first = source_rows[:, None, None, :] + pads + step * (second - pad_time)
            values = np.broadcast_arrays(step, per_frame, first)
            step, per_frame, first = (np.where(exists, value, 0).reshape(1, -1) for value in values)
            i32 = TensorProto.INT32
            frames = g.op("Add", self.frames, g.ints(more_frames))
            out_frames = g.op("Squeeze", g.op("Add", frames, g.ints(1 if pad_time else 1 - times)), g.ints(0))
            frame = g.op("Range", g.constant(0, np.int64), out_frames, g.constant(1, np.int64))
            frame = g.op("Cast", g.op("Unsqueeze", frame, g.ints(1)), to=i32)
            offset = g.op("Mul", g.op("Cast", frames, to=i32), g.constant(per_frame, np.int32))
            offset = g.op("Add", offset, g.constant(first, np.int32))
            self._indices[key] = g.op("Add", g.op("Mul", frame, g.constant(step, np.int32)), offset)
        return self._indices[key]

    def _products(
        self, rows: str, weights: Sequence[str], name: str, convolution: str, repeats: int, *, is_float: bool
    ) -> Pair:
        """Times the weights of each part and the scale of its batch norm; the scale of the frames comes later."""
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
        """The scale of the frames, the shift of batch norm, and LeakyReLU."""
        g = self.graph
        out = []
        for which, part in enumerate(x):
            part = g.op("Reshape", part, g.ints(1, -1, rows, self.config.channels))
            if scales:
                part = g.op("Mul", part, g.op("Reshape", scales, g.ints(1, -1, 1, 1)))
            _, shift = self.batch_norm(name, convolution, which)
            out.append(g.op("LeakyRelu", g.op("Add", part, shift), alpha=LEAKY_SLOPE))
        return self._rectified((out[0], out[1]), height, rows, more_frames)

    def _rectified(self, parts: Pair, height: int, rows: int, more_frames: int) -> Activation:
        """What LeakyReLU gave. Its largest values are its largest magnitudes."""
        highs = [self.graph.op("ReduceMax", part, axes=[0, 2, 3], keepdims=0) for part in parts]
        scale = self.graph.op("Max", *highs, self.graph.constant(SMALLEST_PEAK))
        return Activation(parts, height, rows, more_frames, scale)

    # FSMN along frequency.

    def fsmn(self, name: str, layer: int, x: Activation, *, along_time: bool) -> Activation:
        """Along frequency in 8 bits, or in float where that is asked for. Along time, of a single row, in float."""
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
        """Least peak of a frame: where the bias, relative to it, is as large as the largest weight.

        In quieter frames the bias decides, so the coarser steps do not matter; and its weights in the four channels
        that hold the scale do not widen the range of the others.
        """
        nets = [
            (self._fsmn_weight(name, net, "linear.weight"), self._fsmn_weight(name, net, "linear.bias"))
            for net in (0, 1)
        ]
        peaks = [np.abs(bias) / np.maximum(np.abs(weight).max(axis=1), SMALLEST_PEAK) for weight, bias in nets]
        return float(max(np.max(peaks), SMALLEST_PEAK))

    def _integer_memories(self, name: str, x: Activation, scale: str, floor: float) -> Pair:
        """The sum of memories and filtered memories of each part, in float, all between in 8 bits."""
        g = self.graph
        c = self.config.channels
        ranges = self.ranges.fsmn[name]
        rectified = g.constant(RECTIFIED_ZERO, np.uint8)
        signed, unsigned, one = g.constant(ZERO, np.uint8), g.constant(0, np.uint8), g.constant(1.0)
        no_offset = g.constant(np.zeros(c), np.int8)
        inputs = self._with_bias_channels(x, scale, floor)

        unit = ranges.memory / STEPS
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
                hidden = convolution(inputs[source], g.constant(1 / RECTIFIED_STEPS), rectified, linear, unsigned)
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
        """The parts in 8 bits relative to the scale of their frames, and channels that hold `floor / scale`.

        The four differ by a quarter of a step before they are cut, so their sum has steps a quarter as large.
        """
        g = self.graph
        share = g.op("Div", g.constant(floor * RECTIFIED_STEPS), scale)
        quarters = g.constant(RECTIFIED_ZERO + np.arange(BIAS_CHANNELS) / BIAS_CHANNELS)
        held = g.op(
            "Cast", g.op("Floor", g.op("Add", g.op("Unsqueeze", share, g.ints(1)), quarters)), to=TensorProto.UINT8
        )
        shape = g.op("Concat", g.ints(1), g.op("Shape", scale), g.ints(x.rows, BIAS_CHANNELS), axis=0)
        channels = g.op("Expand", g.op("Unsqueeze", held, g.ints(0, 2)), shape)
        step = g.op("Mul", scale, g.constant(1 / RECTIFIED_STEPS))
        return self._of_both(
            x.parts, lambda part: g.op("Concat", self._quantized(part, step, RECTIFIED_ZERO), channels, axis=3)
        )

    def _float_memories(self, name: str, layer: int, x: Pair, scale: str, *, along_time: bool) -> Pair:
        """The same in float, relative to the scale like there."""
        g = self.graph
        c = self.config.channels
        scale = g.op("Reshape", scale, g.ints(1, -1, 1, 1))
        x = self._of_both(x, lambda part: g.op("Div", part, scale))
        results = []
        for to in (0, 1):
            memories, filters = [], []
            for source in (0, 1):
                net = int(to != source)
                key = f"{name}.fsmn_{('re', 'im')[net]}_L{layer}"
                bias = g.op("Div", g.weight(f"{key}.linear.bias"), scale)
                linear = g.op("Transpose", g.weight(f"{key}.linear.weight"), perm=[1, 0])
                hidden = g.op("Relu", g.op("Add", g.op("MatMul", x[source], linear), bias))
                project = g.op("Transpose", g.weight(f"{key}.project.weight"), perm=[1, 0])
                memory = g.op("MatMul", hidden, g.op("Neg", project) if (to, source) == (0, 1) else project)
                past = FSMN_ORDER - 1
                taps, pads = g.weight(f"{key}.conv1.weight"), [self.time.padding(past), 0, 0, 0]
                filter_input = memory
                if along_time:
                    filter_input = self.time.with_last(memory, past, (1, TIME, encoder_bins()[-1], c))
                else:
                    taps, pads = g.op("Transpose", taps, perm=[0, 1, 3, 2]), [0, past, 0, 0]
                y = g.op("Conv", g.op("Transpose", filter_input, perm=[0, 3, 1, 2]), taps, group=c, pads=pads)
                memories.append(memory)
                filters.append(self.channels_last(y))
                self.observe(name, f"hidden/{net}", hidden)
                self.observe(name, "memory", memory)
                self.observe(name, "filtered", filters[-1])
            sums = [g.op("Add", *memories), g.op("Add", *filters)]
            total = g.op("Add", *sums)
            self.observe(name, "memories", sums[0])
            self.observe(name, "filtered_sum", sums[1])
            self.observe(name, "total", total)
            results.append(g.op("Mul", total, scale))
        return results[0], results[1]

    def observe(self, name: str, what: str, tensor: str) -> None:
        """Called with what `FsmnRanges` describes, relative to the scale, where a block is in float."""

    def observe_input(self, name: str, source: Activation) -> None:
        """Called with each source of a convolution that is in integers."""

    # Plumbing.

    def channels_last(self, x: str) -> str:
        """From `(1, channels, time, frequency)`."""
        return self.graph.op("Transpose", x, perm=[0, 2, 3, 1])

    def _quantized(self, x: str, scales: str, zero: int = ZERO) -> str:
        """To uint8, with one scale per frame."""
        g = self.graph
        zeros = g.op("Expand", g.constant(zero, np.uint8), g.op("Shape", scales))
        return g.op("QuantizeLinear", x, scales, zeros, axis=1)

    def _int8(self, key: str, weight: NDArray[np.float32]) -> tuple[str, str]:
        """Store a matrix as int8 with a scale per row, under its key and `key.scale`."""
        scale = step_of(weight, (1,))
        self.weights[key] = rounded(weight, scale)
        self.weights[f"{key}.scale"] = scale.reshape(-1)
        return self.graph.weight(key), self.graph.weight(f"{key}.scale")

    def _fsmn_weight(self, name: str, net: int, tensor: str) -> NDArray[np.float32]:
        return self.weights[f"{name}.fsmn_{('re', 'im')[net]}_L1.{tensor}"]

    @staticmethod
    def _of_both(x: Pair, function: Callable[[str], str]) -> Pair:
        return function(x[0]), function(x[1])
