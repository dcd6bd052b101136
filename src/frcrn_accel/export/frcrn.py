"""FRCRN as an ONNX graph of real-valued operators, each weight stored once.

The graph is written for speed on ONNX Runtime's CPU kernels, with operators that every engine has:

- A complex tensor is a pair of real ones, `(batch, channels, frequency, time)`. A complex convolution is Gauss's
  product, three real convolutions instead of four: `k = Wr * (xr + xi)`, `re = k - (Wr + Wi) * xi`,
  `im = k + (Wi - Wr) * xr`.
- Batch norm, which has its own scale for each part, is a depthwise 1x1 convolution after it. That takes the
  activation in as well, and stays in the blocked layout that the convolutions work in; an `Add` followed by
  `LeakyRelu` does not.
- A transposed convolution of stride 2 is two ordinary ones, for the even and the odd rows. They are interleaved only
  after the FSMN that follows: its filter along frequency splits into the even and the odd lags.
- Padding is an attribute of the convolutions, never a node.
- What a weight needs before it can be used (a sum, a sign, an order of taps, the folded batch norm) is written as
  operators on the tensor that is stored under its released key name. They depend on constants only, so an engine
  computes them once, when it loads the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from frcrn_accel.export.graph import GraphWriter
from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.model.topology import (
    BN_EPSILON,
    DECODER_KERNELS,
    ENCODER_KERNELS,
    FSMN_ORDER,
    HOP_SAMPLES,
    LEAKY_SLOPE,
    STAGES,
    STFT_BINS,
    WINDOW_SAMPLES,
    Config,
    config_of,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["build_graph"]

Complex = tuple[str, str]  # names of the real and the imaginary part
Rows = tuple[Complex, Complex]  # the even and the odd rows of a complex tensor


def build_graph(
    weights: Weights,
    name: str,
    producer_version: str,
    properties: Mapping[str, str],
    writer: GraphWriter | None = None,
) -> onnx.ModelProto:
    """The whole network, `float32 (batch, samples)` to `float32 (batch, samples - samples % 320)`.

    Args:
        weights: As `model.checkpoint.load_checkpoint` gives them.
        name: Name of the graph.
        producer_version: Version of this library.
        properties: Metadata for the file.
        writer: What writes the operators: a subclass may store and compute otherwise. By default all is fp32.
    """
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    network = _Network(writer or GraphWriter(weights), config)
    network.waveform_to_waveform("audio")
    return network.graph.build("audio", "denoised", name, producer_version, properties)


class _Network:
    """Writes the parts of the network. Methods take and return names of tensors."""

    def __init__(self, graph: GraphWriter, config: Config) -> None:
        self.graph = graph
        self.config = config

    def waveform_to_waveform(self, audio: str) -> None:
        g = self.graph
        with g.scope("stft"):
            kernel = self.fourier_kernel()
            spectrum = g.op("Conv", g.op("Unsqueeze", audio, g.ints(1)), kernel, strides=[HOP_SAMPLES])
            spectrum = g.op("Reshape", spectrum, g.ints(0, 2, STFT_BINS, -1))
        x, masks = spectrum, []
        for unet in self.config.unet_names:
            with g.scope(unet):
                x = self.unet(unet, x)
                masks.append(g.op("Tanh", x))
        with g.scope("mask"):
            mask = masks[0] if len(masks) == 1 else g.op("Sum", *masks)
            a, b = g.ops("Split", 2, spectrum, axis=1)
            c, d = g.ops("Split", 2, mask, axis=1)
            re = g.op("Sub", g.op("Mul", a, c), g.op("Mul", b, d))
            im = g.op("Add", g.op("Mul", a, d), g.op("Mul", b, c))
            clean = g.op("Concat", re, im, axis=1)
        with g.scope("istft"):
            clean = g.op("Reshape", clean, g.ints(0, 2 * STFT_BINS, -1))
            synthesis = g.op("Mul", kernel, g.constant(stft_synthesis_scale()[:, None, None]))
            signal = g.op("ConvTranspose", clean, synthesis, strides=[HOP_SAMPLES])
            # The sum of the squared windows over each sample: 1 but in the first and the last hop.
            frames = g.op("Concat", g.ints(1, 1), g.op("Shape", clean, start=2), axis=0)
            window = g.constant((stft_window() ** 2)[None, None])
            ones = g.op("ConstantOfShape", frames, value=onnx.numpy_helper.from_array(np.ones(1, np.float32)))
            overlap = g.op("ConvTranspose", ones, window, strides=[HOP_SAMPLES])
            # The 1e-8 is upstream's; without it the very first sample, where the window is 0, would be 0 / 0.
            signal = g.op("Div", signal, g.op("Add", overlap, g.constant(1e-8)))
            g.op("Squeeze", signal, g.ints(1))

    def fourier_kernel(self) -> str:
        """`stft_kernel` as `(642, 1, 640)`, computed from 640 cosines: stored, it would be 1.6 MB.

        Bin `k` of sample `n` takes angle number `k n` for the real part, and a quarter turn more for the imaginary
        part; a whole turn has 640 of them.
        """
        g = self.graph
        samples = np.arange(WINDOW_SAMPLES)
        quarter_turns = np.repeat([0, WINDOW_SAMPLES // 4], STFT_BINS)
        angle = g.op(
            "Mul",
            g.constant(np.tile(np.arange(STFT_BINS), 2)[:, None, None], np.int32),
            g.constant(samples, np.int32),
        )
        angle = g.op("Add", angle, g.constant(quarter_turns[:, None, None], np.int32))
        angle = g.op("Mod", angle, g.constant(WINDOW_SAMPLES, np.int32))
        cosines = g.constant(np.cos(2 * np.pi * samples / WINDOW_SAMPLES))
        return g.op("Mul", g.op("Gather", cosines, angle, axis=0), g.constant(stft_window()))

    def unet(self, name: str, spectrum: str) -> str:
        """One U-Net, `(batch, 2, 321, frames)` to the same."""
        g = self.graph
        skips: list[Complex] = []
        heights: list[int] = []
        height = STFT_BINS
        for i, (kernel, _) in enumerate(ENCODER_KERNELS):
            if i == 0:
                with g.scope("encoders.0"):
                    x = self.first_encoder(f"{name}.encoders.0", spectrum)
            else:
                with g.scope(f"fsmn_enc.{i}"):
                    x = self.fsmn(f"{name}.fsmn_enc.{i}", 1, x, axis=2)
                with g.scope(f"encoders.{i}"):
                    w_re, w_im = self.pair(f"{name}.encoders.{i}.conv.conv", "weight")
                    x = self.complex_convolution(x, self.sum_of(x), w_re, w_im, strides=[2, 1], pads=[0, 1, 0, 1])
                    x = self.activated(f"{name}.encoders.{i}", "conv.conv", x)
            height = (height - kernel) // 2 + 1
            if i < STAGES - 1:
                # The scaled output goes into the skip connection only; the next stage gets the plain one.
                with g.scope(f"se_layers_enc.{i}"):
                    scale = self.squeeze_excitation(f"{name}.se_layers_enc.{i}", self.means(x))
                    skips.append(self.scaled(x, scale))
                    heights.append(height)
        for layer in (1, 2):
            with g.scope(f"fsmn.L{layer}"):
                x = self.fsmn(f"{name}.fsmn", layer, x, axis=3)
        for i, (kernel, _) in enumerate(DECODER_KERNELS[:-1]):
            with g.scope(f"decoders.{i}"):
                if i > 0:
                    x = self.joined(x, skips.pop())
                rows, row_counts = self.decoder(f"{name}.decoders.{i}", x, kernel, height)
            with g.scope(f"fsmn_dec.{i}"):
                rows = self.fsmn_of_rows(f"{name}.fsmn_dec.{i}", rows, row_counts)
            if i < STAGES - 2:
                height = heights.pop()
                with g.scope(f"se_layers_dec.{i}"):
                    means = self.means_of_rows(rows, row_counts)
                    scale = self.squeeze_excitation(f"{name}.se_layers_dec.{i}", means)
                    x = self.scaled(self.interleaved(rows, row_counts), scale)
        with g.scope(f"decoders.{STAGES - 1}"):
            y = self.last_decoder(f"{name}.decoders.{STAGES - 1}", rows, row_counts, skips.pop(), heights.pop())
        with g.scope("linear"):
            (w_re, w_im), (b_re, b_im) = (self.pair(f"{name}.linear.conv", kind) for kind in ("weight", "bias"))
            weight = g.op("Concat", self.block_row(w_re, w_im, 0), self.block_row(w_re, w_im, 1), axis=0)
            bias = g.op("Concat", g.op("Sub", b_re, b_im), g.op("Add", b_re, b_im), axis=0)
            return g.op("Conv", y, weight, bias)

    # Convolutions.

    def first_encoder(self, name: str, spectrum: str) -> Complex:
        """From one complex channel: here two convolutions of two real inputs are less work than Gauss's three."""
        g = self.graph
        w_re, w_im = self.pair(f"{name}.conv.conv", "weight")

        def part(which: int) -> str:
            scale, shift = self.batch_norm(name, "conv.conv", which)
            weight = g.op("Mul", self.block_row(w_re, w_im, which), g.op("Unsqueeze", scale, g.ints(1, 2, 3)))
            y = g.op("Conv", spectrum, weight, shift, strides=[2, 1], pads=[0, 1, 0, 1])
            return g.op("LeakyRelu", y, alpha=LEAKY_SLOPE)

        return part(0), part(1)

    def decoder(self, name: str, x: Complex, kernel: int, height: int) -> tuple[Rows, tuple[int, int]]:
        """A transposed convolution as one for the even and one for the odd rows, and how many rows each has.

        Row `2 n + o` is the sum of the taps `k = o, o + 2, ...` on input row `n - (k - o) / 2`. Along time the
        transposed convolution of 2 taps that drops a frame at each end is an ordinary one without padding.
        """
        g = self.graph
        w_re, w_im = (
            g.op("Transpose", weight, perm=[1, 0, 2, 3]) for weight in self.pair(f"{name}.transconv.tconv", "weight")
        )
        xs = self.sum_of(x)
        rows: list[Complex] = []
        row_counts: list[int] = []
        for odd in (0, 1):
            taps = list(range(odd, kernel, 2))[::-1]
            t_re, t_im = (
                g.op("Gather", g.op("Gather", weight, g.ints(*taps), axis=2), g.ints(1, 0), axis=3)
                for weight in (w_re, w_im)
            )
            reach = len(taps) - 1
            y = self.complex_convolution(x, xs, t_re, t_im, pads=[reach, 0, reach, 0])
            rows.append(self.activated(name, "transconv.tconv", y))
            row_counts.append(height + reach)
        return (rows[0], rows[1]), (row_counts[0], row_counts[1])

    def last_decoder(
        self, name: str, rows: Rows, row_counts: tuple[int, int], skip: Complex, skip_height: int
    ) -> str:
        """To one complex channel: `(batch, 2, 321, frames)`.

        With so few outputs it is cheaper to compute the output in four interleaved sets of rows straight from the
        even and odd input rows (two sets from the skip connection, which is whole) than to interleave the input.
        The taps' places in each kernel are written as a 0/1 matrix.
        """
        g = self.graph
        c = self.config.channels
        taps = DECODER_KERNELS[-1][0]
        w_re, w_im = (
            # (inputs, 1, taps, 2) to (1, inputs, 2, taps) with time reversed
            g.op("Gather", g.op("Transpose", weight, perm=[1, 0, 3, 2]), g.ints(1, 0), axis=2)
            for weight in self.pair(f"{name}.transconv.tconv", "weight")
        )
        scales, shifts = zip(*(self.batch_norm(name, "transconv.tconv", which) for which in (0, 1)), strict=True)

        def kernels(first: int, places: np.ndarray) -> str:
            """Weight `(2 * sets, 2 * c, kernel rows, 2)`; `places` is 0 or 1 for (tap, set, kernel row)."""
            _, sets, kernel_rows = places.shape
            part_re, part_im = (
                g.op("Slice", weight, g.ints(first), g.ints(first + c), g.ints(1)) for weight in (w_re, w_im)
            )
            parts = [
                g.op(
                    "Mul", self.block_row(part_re, part_im, which), g.op("Unsqueeze", scales[which], g.ints(1, 2, 3))
                )
                for which in (0, 1)
            ]
            placed = g.op("MatMul", g.op("Concat", *parts, axis=0), g.constant(places.reshape(taps, -1)))
            placed = g.op("Reshape", placed, g.ints(2, 2 * c, 2, sets, kernel_rows))
            placed = g.op("Transpose", placed, perm=[0, 3, 1, 4, 2])
            return g.op("Reshape", placed, g.ints(2 * sets, 2 * c, kernel_rows, 2))

        def interleave(y: str, sets: int, height: int) -> str:
            y = g.op("Reshape", y, g.ints(0, 2, sets, height, -1))
            y = g.op("Reshape", g.op("Transpose", y, perm=[0, 1, 3, 2, 4]), g.ints(0, 2, sets * height, -1))
            return g.op("Slice", y, g.ints(0), g.ints(STFT_BINS), g.ints(2))

        # Output row 2 n + k % 2 takes tap k of input row n - k // 2. From the skip: rows n - 2, n - 1, n.
        from_skip = np.zeros((taps, 2, 3), np.float32)
        # With n = 2 m + a: rows m - 1 and m of the even or the odd input rows; set 2 a + k % 2.
        from_rows = np.zeros((2, taps, 4, 2), np.float32)
        for k in range(taps):
            back, odd = divmod(k, 2)
            from_skip[k, odd, 2 - back] = 1
            for a in (0, 1):
                m, input_odd = divmod(a - back, 2)
                from_rows[input_odd, k, 2 * a + odd, m + 1] = 1
        whole = g.op("Concat", *skip, axis=1)
        y_skip = g.op("Conv", whole, kernels(c, from_skip), pads=[2, 0, 2, 0])
        y_rows = [
            g.op(
                "Conv",
                g.op("Concat", *part, axis=1),
                kernels(0, places),
                # Both sets of rows to the height of the even ones and one more.
                pads=[1, 0, 1 + row_counts[0] - count, 0],
            )
            for part, places, count in zip(rows, from_rows, row_counts, strict=True)
        ]
        y = g.op(
            "Add",
            interleave(g.op("Add", *y_rows), 4, row_counts[0] + 1),
            interleave(y_skip, 2, skip_height + 2),
        )
        shift = g.op("Reshape", g.op("Concat", *shifts, axis=0), g.ints(1, 2, 1, 1))
        return g.op("LeakyRelu", g.op("Add", y, shift), alpha=LEAKY_SLOPE)

    def complex_convolution(
        self, x: Complex, x_sum: str, w_re: str, w_im: str, **attributes: Sequence[int]
    ) -> Complex:
        """Gauss's product, without bias."""
        g = self.graph
        both = g.op("Conv", x_sum, w_re, **attributes)
        to_re = g.op("Conv", x[1], g.op("Neg", g.op("Add", w_re, w_im)), **attributes)
        to_im = g.op("Conv", x[0], g.op("Sub", w_im, w_re), **attributes)
        return g.op("Add", both, to_re), g.op("Add", both, to_im)

    def activated(self, name: str, convolution: str, x: Complex) -> Complex:
        """The bias of a convolution, its batch norm and LeakyReLU."""
        g = self.graph

        def part(which: int) -> str:
            scale, shift = self.batch_norm(name, convolution, which)
            weight = g.op("Unsqueeze", scale, g.ints(1, 2, 3))
            y = g.op("Conv", x[which], weight, shift, group=self.config.channels)
            return g.op("LeakyRelu", y, alpha=LEAKY_SLOPE)

        return part(0), part(1)

    def batch_norm(self, name: str, convolution: str, which: int) -> tuple[str, str]:
        """Scale and shift of one part, the shift with the bias of the complex convolution before it."""
        g = self.graph
        gamma, beta, mean, variance = (
            g.weight(f"{name}.bn.bn_{('re', 'im')[which]}.{tensor}")
            for tensor in ("weight", "bias", "running_mean", "running_var")
        )
        bias = g.op(("Sub", "Add")[which], *self.pair(f"{name}.{convolution}", "bias"))
        scale = g.op("Div", gamma, g.op("Sqrt", g.op("Add", variance, g.constant(BN_EPSILON))))
        return scale, g.op("Add", g.op("Mul", g.op("Sub", bias, mean), scale), beta)

    def block_row(self, w_re: str, w_im: str, which: int) -> str:
        """One row of `[[Wr, -Wi], [Wi, Wr]]`, on axis 1."""
        g = self.graph
        parts = (w_re, g.op("Neg", w_im)) if which == 0 else (w_im, w_re)
        return g.op("Concat", *parts, axis=1)

    # FSMN: `re(x.re) - im(x.im)` and `re(x.im) + im(x.re)`, each net with a residual of its own.

    def fsmn(self, name: str, layer: int, x: Complex, axis: int) -> Complex:
        """Along a whole axis: 2 frequency, 3 time."""
        g = self.graph
        memory = self.fsmn_memory(name, layer, x)
        past = FSMN_ORDER - 1

        def filtered(to: int, source: int) -> str:
            weight = self.fsmn_filter(name, layer, is_im_net=to != source)
            pads = [past, 0, 0, 0]
            if axis == 3:
                weight = g.op("Transpose", weight, perm=[0, 1, 3, 2])
                pads = [0, past, 0, 0]
            y = g.op("Conv", memory[to][source], weight, group=self.config.channels, pads=pads)
            return g.op("Add", y, self.fsmn_residual(x, to, source))

        re, im = (g.op("Add", filtered(to, 0), filtered(to, 1)) for to in (0, 1))
        return re, im

    def fsmn_of_rows(self, name: str, rows: Rows, row_counts: tuple[int, int]) -> Rows:
        """Along frequency, on even and odd rows apart: even lags stay within a set, odd lags cross over."""
        g = self.graph
        memories = [self.fsmn_memory(name, 1, x) for x in rows]
        half = FSMN_ORDER // 2

        def filtered(odd: int, to: int) -> str:
            terms = []
            for other in (0, 1):
                crosses = odd != other
                # An even row reaches odd rows from the one before it on: lag 1 is one row of the set back.
                back = half - 1 + (crosses and odd == 0)
                # Tap 19 - lag. A zero tap at the end drops the last row where that would be one too many.
                taps = range(0 if crosses else 1, FSMN_ORDER, 2)
                drops = row_counts[other] + (crosses and odd == 0) - row_counts[odd]
                for source in (0, 1):
                    weight = self.fsmn_filter(name, 1, is_im_net=to != source)
                    weight = g.op("Gather", weight, g.ints(*taps), axis=2)
                    if drops:
                        zeros = g.constant(np.zeros((self.config.channels, 1, drops, 1)))
                        weight = g.op("Concat", weight, zeros, axis=2)
                    y = g.op(
                        "Conv",
                        memories[other][to][source],
                        weight,
                        group=self.config.channels,
                        pads=[back, 0, 0, 0],
                    )
                    terms.append(y if crosses else g.op("Add", y, self.fsmn_residual(rows[odd], to, source)))
            total = terms[0]
            for term in terms[1:]:
                total = g.op("Add", total, term)
            return total

        even, odd = ((filtered(odd, 0), filtered(odd, 1)) for odd in (0, 1))
        return even, odd

    def fsmn_memory(self, name: str, layer: int, x: Complex) -> list[list[str]]:
        """What the filters run on: `[to][source]`, the share of each part of the output from each of the input.

        The sign of the imaginary net's share in the real part is in its projection.
        """
        g = self.graph
        linear, bias, project = (
            self.pair(f"{name}.fsmn", tensor, f"_L{layer}")
            for tensor in ("linear.weight", "linear.bias", "project.weight")
        )

        def share(to: int, source: int) -> str:
            net = int(to != source)
            hidden = g.op("Conv", x[source], g.op("Unsqueeze", linear[net], g.ints(2, 3)), bias[net])
            weight = g.op("Unsqueeze", project[net], g.ints(2, 3))
            if (to, source) == (0, 1):
                weight = g.op("Neg", weight)
            return g.op("Conv", g.op("Relu", hidden), weight)

        return [[share(to, source) for source in (0, 1)] for to in (0, 1)]

    def fsmn_filter(self, name: str, layer: int, *, is_im_net: bool) -> str:
        """Weight of the depthwise filter, with the identity in its last tap."""
        g = self.graph
        tap = np.zeros((1, 1, FSMN_ORDER, 1), np.float32)
        tap[0, 0, -1, 0] = 1
        return g.op("Add", self.pair(f"{name}.fsmn", "conv1.weight", f"_L{layer}")[is_im_net], g.constant(tap))

    def fsmn_residual(self, x: Complex, to: int, source: int) -> str:
        g = self.graph
        if (to, source) != (0, 1):
            return x[source]
        # Not `Neg`: a depthwise convolution stays in the convolutions' layout.
        minus = g.constant(-np.ones((self.config.channels, 1, 1, 1)))
        return g.op("Conv", x[source], minus, group=self.config.channels)

    # Squeeze-and-excitation.

    def squeeze_excitation(self, name: str, means: str) -> Complex:
        """Scales of the two parts, `(batch, channels, 1, 1)`, from their means `(batch, 2 * channels, 1, 1)`.

        Its four dense layers (two nets on two parts) are two grouped 1x1 convolutions.
        """
        g = self.graph

        def layer(x: str, number: int, groups: int) -> str:
            weight, bias = (
                g.op("Concat", *[g.weight(f"{name}.fc_{part}.{number}.{kind}") for part in "riri"], axis=0)
                for kind in ("weight", "bias")
            )
            return g.op("Conv", x, g.op("Unsqueeze", weight, g.ints(2, 3)), bias, group=groups)

        hidden = g.op("Relu", layer(means, 0, 2))
        excited = g.op("Sigmoid", layer(hidden, 2, 4))
        r_of_re, i_of_re, r_of_im, i_of_im = g.ops("Split", 4, excited, axis=1)
        return g.op("Sub", r_of_re, i_of_im), g.op("Add", r_of_im, i_of_re)

    def means(self, x: Complex) -> str:
        g = self.graph
        return g.op("Concat", *[g.op("GlobalAveragePool", part) for part in x], axis=1)

    def means_of_rows(self, rows: Rows, row_counts: tuple[int, int]) -> str:
        g = self.graph
        weighted = [
            g.op("Mul", self.means(x), g.constant(count / sum(row_counts)))
            for x, count in zip(rows, row_counts, strict=True)
        ]
        return g.op("Add", *weighted)

    def scaled(self, x: Complex, scale: Complex) -> Complex:
        return self.graph.op("Mul", x[0], scale[0]), self.graph.op("Mul", x[1], scale[1])

    # Plumbing.

    def pair(self, name: str, tensor: str, suffix: str = "") -> Complex:
        """The two weights `name_re` and `name_im`."""
        return self.graph.weight(f"{name}_re{suffix}.{tensor}"), self.graph.weight(f"{name}_im{suffix}.{tensor}")

    def sum_of(self, x: Complex) -> str:
        return self.graph.op("Add", *x)

    def joined(self, x: Complex, skip: Complex) -> Complex:
        g = self.graph
        return g.op("Concat", x[0], skip[0], axis=1), g.op("Concat", x[1], skip[1], axis=1)

    def interleaved(self, rows: Rows, row_counts: tuple[int, int]) -> Complex:
        """Even and odd rows in their order."""
        g = self.graph
        height = sum(row_counts)

        def part(which: int) -> str:
            even, odd = rows[0][which], rows[1][which]
            if row_counts[0] == row_counts[1]:
                return g.op("Reshape", g.op("Concat", even, odd, axis=3), g.ints(0, 0, height, -1))
            order = np.arange(height)
            order = np.where(order % 2 == 0, order // 2, row_counts[0] + order // 2)
            return g.op("Gather", g.op("Concat", even, odd, axis=2), g.ints(*order), axis=2)

        return part(0), part(1)
