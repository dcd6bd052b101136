"""The form for steps of streams on ONNX Runtime: the plain form with fewer operators and smaller weights.

With a whole signal the time goes into arithmetic. With five frames, much of it goes into calling operators and
fetching weights from memory. Operators are therefore merged wherever that adds little arithmetic, and the Fourier
transforms use the symmetry between the halves of a frame. Between convolutions, tensors stay in the blocked layout of
ONNX Runtime as far as possible.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.graph.common import Pair, encoder_bins
from frcrn_accel.graph.direct import joined
from frcrn_accel.graph.plain import PlainNetwork, decoder_taps
from frcrn_accel.graph.timeline import TIME, Stepwise
from frcrn_accel.network.topology import (
    AVERAGING_INPUT,
    FRAME_SAMPLES,
    FSMN_ORDER,
    HOP_SAMPLES,
    SE_LAYERS,
    STAGES,
    STFT_BINS,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["StepNetwork"]

# Up to this number of channels, sums inside convolutions are faster than a few more operators.
_FEW_CHANNELS = 32

# Order of bins in the transforms here: even bins of the real part, of the imaginary part, then odd bins of both.
_EVEN, _ODD = np.arange(0, STFT_BINS, 2), np.arange(1, STFT_BINS, 2)
_ORDER = np.concatenate([_EVEN, _EVEN + STFT_BINS, _ODD, _ODD + STFT_BINS])


class StepNetwork(PlainNetwork):
    """Writes the step form, see the module."""

    time: Stepwise

    def waveform_to_waveform(self, audio: str) -> None:
        """Write STFT, masks and inverse STFT, after splitting the averaging weights by lag."""
        lags = self.config.unets * self.time.lookahead + 1
        self._averaging = self.graph.ops("Split", lags, AVERAGING_INPUT, axis=1) if lags > 1 else [AVERAGING_INPUT]
        super().waveform_to_waveform(audio)

    def unet(self, name: str, spectrum: str) -> str:
        """Write a U-Net, see `FrequencyLastNetwork.unet`. The running means of all its layers are one state."""
        g = self.graph
        layers = (STAGES - 1, *[1] * (STAGES - 2))
        state = self.time.state(1, ("batch", sum(layers), TIME, 2 * self.config.channels), f"{name}.{SE_LAYERS}")
        self._means_before = g.ops("Split", len(layers), state, g.ints(*layers), axis=1)
        self._means: list[str] = []
        mask = super().unet(name, spectrum)
        self.time.keep(state, joined(g, self._means, axis=1), 1, axis=2)
        return mask

    def analysis(self, audio: str, kernel: str) -> str:
        """Write the STFT, see `Network.analysis`.

        The two halves of a frame are a whole number of periods apart for an even bin, and half a period more for an
        odd bin. Even bins are therefore a transform of the sum of the halves, odd bins of their difference.
        """
        g = self.graph
        audio = self.time.with_last(audio, FRAME_SAMPLES - HOP_SAMPLES, ("batch", TIME))
        hops = g.op("Reshape", audio, g.ints(0, -1, HOP_SAMPLES))
        ends = g.ints(-1), g.ints(np.iinfo(np.int64).max)
        first, second = (
            g.op("Mul", g.op("Slice", hops, g.ints(i), end, g.ints(1)), g.constant(window))
            for i, (end, window) in enumerate(zip(ends, self.half_windows(), strict=True))
        )
        even, odd = (g.op("Transpose", part, perm=[1, 0]) for part in self.halved(kernel))
        parts = [g.op("MatMul", g.op("Add", first, second), even), g.op("MatMul", g.op("Sub", first, second), odd)]
        bins = g.op("Gather", joined(g, parts, axis=2), g.ints(*np.argsort(_ORDER)), axis=2)
        return g.op("Transpose", g.op("Reshape", bins, g.ints(0, 0, 2, STFT_BINS)), perm=[0, 2, 1, 3])

    def synthesis(self, spectrum: str, kernel: str) -> str:
        """Write the inverse STFT, see `Network.synthesis`, with the symmetry of `analysis`."""
        g = self.graph
        bins = g.op("Reshape", g.op("Transpose", spectrum, perm=[0, 2, 1, 3]), g.ints(0, 0, 2 * STFT_BINS))
        scaled = g.op("Mul", kernel, g.constant(stft_synthesis_scale()[_ORDER, None]))
        even, odd = (
            g.op("MatMul", g.op("Gather", bins, g.ints(*order), axis=2), part)
            for order, part in zip(np.split(_ORDER, [2 * len(_EVEN)]), self.halved(scaled), strict=True)
        )
        halves = g.op("Add", even, odd), g.op("Sub", even, odd)
        first, second = (
            g.op("Mul", half, g.constant(window)) for half, window in zip(halves, self.half_windows(), strict=True)
        )
        return self.time.overlapped(first, second)

    def fourier_kernel(self) -> str:
        """Compute the Fourier basis of the first half of a frame, without window, `(642, 320)`."""
        bins = np.tile(np.arange(STFT_BINS), 2)[_ORDER, None]
        return self.fourier_basis(bins, _ORDER[:, None] >= STFT_BINS, HOP_SAMPLES)

    def halved(self, kernel: str) -> Pair:
        """Split a kernel into the rows of even bins and those of odd bins."""
        g = self.graph
        rows = g.ints(2 * len(_EVEN), 2 * len(_ODD))
        even, odd = g.ops("Split", 2, kernel, rows, axis=0)
        return even, odd

    @staticmethod
    def half_windows() -> list[NDArray[np.float64]]:
        """Return the two halves of the STFT's window function."""
        return np.split(stft_window(), 2)

    def decoder(self, name: str, inputs: list[str]) -> str:
        """Write even and odd rows as two convolutions, see `DirectNetwork.decoder`.

        With channels last, rows that are channels of a bin are adjacent, so interleaving them takes no operator. ONNX
        Runtime transposes on the way out of the blocked layout of convolutions and on the way back, if a single
        operator takes the result. That is the pooling, which changes nothing. Its output is in the blocked layout, so
        that sums of convolutions that follow become part of them.
        """
        g = self.graph
        rows = joined(g, list(self.decoder_rows(name, inputs)), axis=1)
        bins = encoder_bins()[STAGES - 1 - int(name.rpartition(".")[2])] + (decoder_taps(name) - 1) // 2
        y = g.op("Transpose", rows, perm=[0, 2, 3, 1])
        y = g.op("Reshape", y, g.ints(0, 0, 2 * bins, 2 * self.config.channels))
        if decoder_taps(name) % 2 == 1:
            y = g.op("Slice", y, g.ints(0), g.ints(-1), g.ints(2))
        return g.op("MaxPool", g.op("Transpose", y, perm=[0, 3, 1, 2]), kernel_shape=[1, 1])

    def fsmn(self, name: str, layer: int, x: str, *, along_time: bool) -> str:
        """Write an FSMN layer, see `Network.fsmn`."""
        if along_time or self.config.channels > _FEW_CHANNELS:
            return self.fsmn_of_quarters(name, layer, x, along_time=along_time)
        return self.fsmn_of_nets(name, layer, x)

    def fsmn_of_nets(self, name: str, layer: int, x: str) -> str:
        """Write an FSMN layer along frequency as convolutions alone: all sums are part of them.

        The output is that of `re` plus the imaginary unit times that of `im`. Many channels would make the matrix for
        that unit large.
        """
        g = self.graph
        c = self.config.channels
        nets = []
        for is_im_net in (False, True):
            linear, bias, project = (
                self.pair(f"{name}.fsmn", tensor, f"_L{layer}")[is_im_net]
                for tensor in ("linear.weight", "linear.bias", "project.weight")
            )
            hidden = g.op("Relu", g.op("Conv", x, self.pointwise(linear, linear), joined(g, [bias, bias]), group=2))
            memory = g.op("Conv", hidden, self.pointwise(project, project), group=2)
            kernel = g.op("Transpose", self.fsmn_filter(name, layer, is_im_net=is_im_net), perm=[0, 1, 3, 2])
            kernel = joined(g, [kernel, kernel])
            filtered = g.op("Conv", memory, kernel, group=2 * c, pads=[0, FSMN_ORDER - 1, 0, 0])
            nets.append(g.op("Add", filtered, x))
        one, none = np.eye(c), np.zeros((c, c))
        imaginary_unit = np.block([[none, -one], [one, none]])[..., None, None]
        return g.op("Add", g.op("Conv", nets[1], g.constant(imaginary_unit)), nets[0])

    def fsmn_of_quarters(self, name: str, layer: int, x: str, *, along_time: bool) -> str:
        """Write an FSMN layer for both nets at once.

        The channels of hidden and memory are, in quarters: `re` of the real part, `im` of the real part, `im` of the
        imaginary part, `re` of the imaginary part. They add to the real, the imaginary, the real (negated in the
        projection) and the imaginary part of the output, so the output is the sum of the two halves.
        """
        g = self.graph
        c = self.config.channels
        past = FSMN_ORDER - 1
        (re, im), (re_bias, im_bias), (re_project, im_project) = (
            self.pair(f"{name}.fsmn", tensor, f"_L{layer}")
            for tensor in ("linear.weight", "linear.bias", "project.weight")
        )
        bias = joined(g, [re_bias, im_bias, im_bias, re_bias])
        hidden = g.op("Relu", g.op("Conv", x, self.pointwise(re, im, im, re), bias, group=2))
        weight = self.pointwise(re_project, im_project, g.op("Neg", im_project), re_project)
        memory = g.op("Conv", hidden, weight, group=4)
        re_filter, im_filter = (self.fsmn_filter(name, layer, is_im_net=is_im_net) for is_im_net in (False, True))
        kernel = joined(g, [re_filter, im_filter, im_filter, re_filter])
        if along_time:
            memory = self.time.with_last(memory, past, ("batch", 4 * c, TIME, encoder_bins()[-1]))
        else:
            kernel = g.op("Transpose", kernel, perm=[0, 1, 3, 2])
        pads = [self.time.padding(past), 0, 0, 0] if along_time else [0, past, 0, 0]
        halves = g.ops("Split", 2, g.op("Conv", memory, kernel, group=4 * c, pads=pads), axis=1)
        # The residuals: the input, and the input times the imaginary unit.
        swapped = g.op("Gather", x, g.ints(*range(c, 2 * c), *range(c)), axis=1)
        signs = np.repeat([-1, 1], c)[:, None, None]
        return g.op("Sum", *halves, x, g.op("Mul", swapped, g.constant(signs)))

    def squeeze_excitation(self, name: str, x: str) -> str:
        """Write squeeze-and-excitation of a single layer."""
        (scaled,) = self.squeeze_excitations({name: x})
        return scaled

    def squeeze_excitations(self, layers: Mapping[str, str]) -> list[str]:
        """Write squeeze-and-excitation of several layers, see `Network.squeeze_excitations`.

        The dense layers of a layer's nets are products with two block matrices, channels last, and a product with a
        matrix of 0, 1 and -1 combines the nets: with many channels, convolutions of a few frames take longer. The
        layers share these products.
        """
        g = self.graph
        c = self.config.channels
        count = len(layers)
        means = joined(g, [self.time.mean(x) for x in layers.values()], axis=3)
        means = g.op("Transpose", means, perm=[0, 3, 2, 1])
        means = g.op("Concat", self._means_before[len(self._means)], means, axis=2)
        averaged = g.op("MatMul", self._averaging[self.time.lag], means)
        self._means.append(averaged)

        def dense(rows: str, number: int, blocks: list[list[str]]) -> str:
            weights, biases = [], []
            for name in layers:
                none = g.op("Mul", g.weight(f"{name}.fc_r.{number}.weight"), g.constant(0))
                of_nets = {net: g.weight(f"{name}.fc_{net}.{number}.weight") for net in "ri"} | {"": none}
                block = joined(g, [joined(g, [of_nets[net] for net in row], axis=1) for row in blocks])
                weights.append(g.op("Unsqueeze", g.op("Transpose", block, perm=[1, 0]), g.ints(0)))
                bias = joined(g, [g.weight(f"{name}.fc_{net}.{number}.bias") for net in "riri"])
                biases.append(g.op("Unsqueeze", bias, g.ints(0, 1)))
            return g.op("Add", g.op("MatMul", rows, joined(g, weights)), joined(g, biases))

        hidden = g.op("Relu", dense(averaged, 0, [["r", ""], ["i", ""], ["", "r"], ["", "i"]]))
        excitations = g.op(
            "Sigmoid", dense(hidden, 2, [[net if i == j else "" for j in range(4)] for i, net in enumerate("riri")])
        )
        one = np.eye(c)
        none = np.zeros_like(one)
        together = np.block([[one, none], [none, one], [none, one], [-one, none]])
        scale = g.op("Transpose", g.op("MatMul", excitations, g.constant(together)), perm=[0, 3, 2, 1])
        scales = g.ops("Split", count, scale, axis=3) if count > 1 else [scale]
        return [g.op("Mul", x, scale) for x, scale in zip(layers.values(), scales, strict=True)]
