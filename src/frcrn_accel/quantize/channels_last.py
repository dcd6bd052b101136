"""The form of the network with channels last, for integer products: its activations and its float layers.

Activations are pairs of `(1, time, frequency, channels)`, so a convolution is a gather of rows and one product.
`IntegerNetwork` adds the convolutions and the FSMN in 8 bits. The first and the last layer, squeeze-and-excitation
and the mask are in float, and are written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from frcrn_accel.graph.common import FrequencyLastNetwork, Pair
from frcrn_accel.graph.timeline import TIME
from frcrn_accel.graph.writer import Shape
from frcrn_accel.network.topology import DECODER_KERNELS, ENCODER_KERNELS, LEAKY_SLOPE, STFT_BINS

__all__ = ["SMALLEST_PEAK", "Activation", "ChannelsLastNetwork"]

SMALLEST_PEAK = 1e-30  # a silent frame needs a scale too


@dataclass(frozen=True)
class Activation:
    """A complex activation.

    Attributes:
        parts: Tensors of the real and the imaginary part, `(1, frames, rows, channels)`.
        height: Rows along frequency that count.
        rows: Rows in the tensors. A transposed convolution makes pairs of rows, so the last row may be surplus.
        more_frames: Frames, less those of the spectrum; every encoder adds one.
        scale: A tensor `(frames,)` with the peak of each frame that ranges are relative to; "" for none.
    """

    parts: Pair
    height: int
    rows: int
    more_frames: int
    scale: str = ""


class ChannelsLastNetwork(FrequencyLastNetwork[Activation]):
    """Writes the float layers of the form with channels last.

    Attributes:
        frames: Tensor with the number of frames of the spectrum, `(1,)`; set by `analysis`.
    """

    batch: ClassVar[str | int] = 1  # a window at a time
    frames: str = ""

    def analysis(self, audio: str, kernel: str) -> str:
        """Add the STFT, `(1, 2, frames, 321)`."""
        spectrum = super().analysis(audio, kernel)
        self.frames = self.graph.op("Shape", spectrum, start=2, end=3)
        return spectrum

    def first_encoder(self, name: str, spectrum: str) -> Activation:
        """Add the first stage in float, then move the channels last."""
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
        return self.rectified((part(0), part(1)), height, height, more_frames=pad)

    def last_decoder(self, name: str, x: Activation, skip: Activation, since: int) -> str:
        """Add the last stage, see `FrequencyLastNetwork.last_decoder`.

        With few outputs it is cheapest to multiply each input position by all taps first, `(positions, taps)`, and
        then to add up the small products at their output rows, as two interleaved sets of rows.
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

    def squeeze_excitation(self, name: str, x: Activation) -> Activation:
        """Add squeeze-and-excitation."""
        g = self.graph
        means = self._means_of_frames(x) if self.time.is_stepwise else self._means(x)
        re, im = (
            g.op("Mul", part, self.channels_last(scale))
            for part, scale in zip(x.parts, self.excitation_scales(name, means), strict=True)
        )
        return replace(x, parts=(re, im))

    def _means(self, x: Activation) -> str:
        """Return the means over rows and frames, `(1, 2 * channels, 1, 1)`."""
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
        """Return the means over rows and running means over frames, `(1, 2 * channels, frames, 1)`."""
        g = self.graph
        row = g.constant(self._row_shares(x)[None, None])
        means = g.op("Concat", *[g.op("MatMul", row, part) for part in x.parts], axis=3)
        means = g.op("Transpose", means, perm=[0, 3, 1, 2])
        return self.time.averaged(means, 2 * self.config.channels)

    @staticmethod
    def _row_shares(x: Activation) -> NDArray[np.float32]:
        """Return the weight of each row in the mean, `(1, rows)`."""
        shares = np.zeros((1, x.rows), np.float32)
        shares[:, : x.height] = 1 / x.height
        return shares

    def delayed(self, x: Activation, since: int, height: int) -> Activation:
        """See `Timeline.delayed`."""
        return self._along_time(x, lambda tensor, shape: self.time.delayed(tensor, since, shape))

    def of_two_frames(self, x: Activation) -> Activation:
        """Prepend the last frame of the previous step, in a step."""
        x = self._along_time(x, lambda tensor, shape: self.time.with_last(tensor, 1, shape))
        return replace(x, more_frames=x.more_frames + 1 - self.time.padding(1))

    def _along_time(self, x: Activation, function: Callable[[str, Shape], str]) -> Activation:
        """Apply a function of a tensor and its shape to all tensors of an activation, in a step."""
        if not self.time.is_stepwise:
            return x
        g = self.graph
        shape = (1, TIME, x.rows, self.config.channels)
        scale = x.scale
        if scale:  # states also have a batch axis
            scale = g.op("Squeeze", function(g.op("Unsqueeze", scale, g.ints(0)), (1, TIME)), g.ints(0))
        return replace(x, parts=self.of_both(x.parts, lambda part: function(part, shape)), scale=scale)

    def rectified(self, parts: Pair, height: int, rows: int, more_frames: int) -> Activation:
        """Make an activation of LeakyReLU's output, whose largest values are its largest magnitudes."""
        highs = [self.graph.op("ReduceMax", part, axes=[0, 2, 3], keepdims=0) for part in parts]
        scale = self.graph.op("Max", *highs, self.graph.constant(SMALLEST_PEAK))
        return Activation(parts, height, rows, more_frames, scale)

    def channels_last(self, x: str) -> str:
        """Move the channels of `(1, channels, time, frequency)` last."""
        return self.graph.op("Transpose", x, perm=[0, 2, 3, 1])

    @staticmethod
    def of_both(x: Pair, function: Callable[[str], str]) -> Pair:
        """Apply a function to both parts."""
        return function(x[0]), function(x[1])
