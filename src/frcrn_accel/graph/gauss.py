"""The form with the least arithmetic: Gauss's complex product. Tuned for ONNX Runtime's CPU kernels.

- A complex tensor is a pair of real ones, `(batch, channels, frequency, time)`. A complex convolution is Gauss's
  product, three real convolutions instead of four: `k = Wr * (xr + xi)`, `re = k - (Wr + Wi) * xi`,
  `im = k + (Wi - Wr) * xr`.
- Batch norm, which has its own scale for each part, is a depthwise 1x1 convolution after it. ONNX Runtime fuses the
  activation into it, and it keeps the blocked layout of the convolutions; an `Add` followed by `LeakyRelu` does not.
- A transposed convolution of stride 2 is two ordinary ones, for the even and the odd rows. These are interleaved only
  after the FSMN that follows: its filter along frequency splits into even and odd lags.
- Padding is an attribute of the convolutions, never a node.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frcrn_accel.graph.common import Network, Pair, encoder_bins
from frcrn_accel.graph.timeline import WholePass
from frcrn_accel.network.topology import DECODER_KERNELS, FSMN_ORDER, LEAKY_SLOPE, STAGES, STFT_BINS

__all__ = ["GaussNetwork"]

Rows = tuple[Pair, Pair]  # the even and the odd rows of a complex tensor


class GaussNetwork(Network[Pair]):
    """Writes the Gauss form, see the module. Only for whole signals: with time last, few frames are slow."""

    time: WholePass

    def unet(self, name: str, spectrum: str) -> str:
        """Write a U-Net, from `(batch, 2, 321, frames)` to the same shape."""
        g = self.graph
        x, skips = self.encoded(name, spectrum)
        *heights, height = encoder_bins()
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
                    scale = self.excitation_scales(f"{name}.se_layers_dec.{i}", means)
                    x = self.scaled(self.interleaved(rows, row_counts), scale)
        with g.scope(f"decoders.{STAGES - 1}"):
            y = self.last_decoder(f"{name}.decoders.{STAGES - 1}", rows, row_counts, skips.pop(), heights.pop())
        with g.scope("linear"):
            return self.linear(name, y)

    # Convolutions.

    def first_encoder(self, name: str, spectrum: str) -> Pair:
        """Write the first stage: for one complex channel two real convolutions are less work than Gauss's three."""
        g = self.graph
        w_re, w_im = self.pair(f"{name}.conv.conv", "weight")

        def part(which: int) -> str:
            scale, shift = self.batch_norm(name, "conv.conv", which)
            weight = g.op("Mul", self.block_row(w_re, w_im, which), g.op("Unsqueeze", scale, g.ints(1, 2, 3)))
            y = g.op("Conv", spectrum, weight, shift, strides=[2, 1], pads=[0, 1, 0, 1])
            return g.op("LeakyRelu", y, alpha=LEAKY_SLOPE)

        return part(0), part(1)

    def encoder(self, name: str, x: Pair) -> Pair:
        """See `Network.encoder`."""
        w_re, w_im = self.pair(f"{name}.conv.conv", "weight")
        y = self.complex_convolution(x, self.sum_of(x), w_re, w_im, strides=[2, 1], pads=[0, 1, 0, 1])
        return self.activated(name, "conv.conv", y)

    def decoder(self, name: str, x: Pair, kernel: int, height: int) -> tuple[Rows, tuple[int, int]]:
        """Write a transposed convolution as two, and return their rows and how many each has.

        Row `2 n + o` is the sum of the taps `k = o, o + 2, ...` on input row `n - (k - o) / 2`. Along time the
        transposed convolution of 2 taps that drops a frame at each end is an ordinary one without padding.
        """
        g = self.graph
        w_re, w_im = (
            g.op("Transpose", weight, perm=[1, 0, 2, 3]) for weight in self.pair(f"{name}.transconv.tconv", "weight")
        )
        xs = self.sum_of(x)
        rows: list[Pair] = []
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

    def last_decoder(self, name: str, rows: Rows, row_counts: tuple[int, int], skip: Pair, skip_height: int) -> str:
        """Write the last stage, to one complex channel: `(batch, 2, 321, frames)`.

        With few outputs it is cheaper to compute four interleaved sets of output rows directly from the even and odd
        input rows (two sets from the skip connection, whose rows are in order) than to interleave the input. A 0/1
        matrix places the taps in each kernel.
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
            """Return weights `(2 * sets, 2 * c, kernel rows, 2)`; `places` is 0 or 1 for (tap, set, kernel row)."""
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
                # Pad both sets of rows to the height of the even ones plus one.
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

    def complex_convolution(self, x: Pair, x_sum: str, w_re: str, w_im: str, **attributes: Sequence[int]) -> Pair:
        """Write Gauss's product, without bias."""
        g = self.graph
        both = g.op("Conv", x_sum, w_re, **attributes)
        to_re = g.op("Conv", x[1], g.op("Neg", g.op("Add", w_re, w_im)), **attributes)
        to_im = g.op("Conv", x[0], g.op("Sub", w_im, w_re), **attributes)
        return g.op("Add", both, to_re), g.op("Add", both, to_im)

    def activated(self, name: str, convolution: str, x: Pair) -> Pair:
        """Write the bias of a convolution, its batch norm and LeakyReLU."""
        g = self.graph

        def part(which: int) -> str:
            scale, shift = self.batch_norm(name, convolution, which)
            weight = g.op("Unsqueeze", scale, g.ints(1, 2, 3))
            y = g.op("Conv", x[which], weight, shift, group=self.config.channels)
            return g.op("LeakyRelu", y, alpha=LEAKY_SLOPE)

        return part(0), part(1)

    # FSMN.

    def fsmn(self, name: str, layer: int, x: Pair, *, along_time: bool) -> Pair:
        """See `Network.fsmn`."""
        g = self.graph
        memory = self.fsmn_memory(name, layer, x)
        past = FSMN_ORDER - 1

        def filtered(to: int, source: int) -> str:
            weight = self.fsmn_filter(name, layer, is_im_net=to != source)
            pads = [past, 0, 0, 0]
            if along_time:
                weight = g.op("Transpose", weight, perm=[0, 1, 3, 2])
                pads = [0, past, 0, 0]
            y = g.op("Conv", memory[to][source], weight, group=self.config.channels, pads=pads)
            return g.op("Add", y, self.fsmn_residual(x, to, source))

        re, im = (g.op("Add", filtered(to, 0), filtered(to, 1)) for to in (0, 1))
        return re, im

    def fsmn_of_rows(self, name: str, rows: Rows, row_counts: tuple[int, int]) -> Rows:
        """Write an FSMN along frequency on even and odd rows: even lags stay within a set, odd lags cross over."""
        g = self.graph
        memories = [self.fsmn_memory(name, 1, x) for x in rows]
        half = FSMN_ORDER // 2

        def filtered(odd: int, to: int) -> str:
            terms = []
            for other in (0, 1):
                crosses = odd != other
                # Lag 1 of an even row is the odd row before it: one row back in that set.
                back = half - 1 + (crosses and odd == 0)
                # Tap 19 - lag. A zero tap at the end drops the last row where there would be one too many.
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

    def fsmn_memory(self, name: str, layer: int, x: Pair) -> list[list[str]]:
        """Write the memories: `[to][source]`, for each output part the memory of each input part.

        The projection of the imaginary net includes the sign of its contribution to the real part.
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

    def fsmn_residual(self, x: Pair, to: int, source: int) -> str:
        """Return the input, with the sign of its contribution to an output part."""
        g = self.graph
        if (to, source) != (0, 1):
            return x[source]
        # Not `Neg`: a depthwise convolution keeps the blocked layout.
        minus = g.constant(-np.ones((self.config.channels, 1, 1, 1)))
        return g.op("Conv", x[source], minus, group=self.config.channels)

    # Squeeze-and-excitation.

    def squeeze_excitation(self, name: str, x: Pair) -> Pair:
        """Write squeeze-and-excitation, which scales the real and the imaginary part by means of both."""
        return self.scaled(x, self.excitation_scales(name, self.means(x)))

    def means(self, x: Pair) -> str:
        """Write the means over frequency and time, `(batch, 2 * channels, 1, 1)`."""
        g = self.graph
        return g.op("Concat", *[g.op("GlobalAveragePool", part) for part in x], axis=1)

    def means_of_rows(self, rows: Rows, row_counts: tuple[int, int]) -> str:
        """Write the means of rows that are not interleaved yet."""
        g = self.graph
        weighted = [
            g.op("Mul", self.means(x), g.constant(count / sum(row_counts)))
            for x, count in zip(rows, row_counts, strict=True)
        ]
        return g.op("Add", *weighted)

    def scaled(self, x: Pair, scale: Pair) -> Pair:
        """Multiply each part by its own scale."""
        return self.graph.op("Mul", x[0], scale[0]), self.graph.op("Mul", x[1], scale[1])

    def sum_of(self, x: Pair) -> str:
        """Add the real and the imaginary part."""
        return self.graph.op("Add", *x)

    def joined(self, x: Pair, skip: Pair) -> Pair:
        """Concatenate along the complex channels."""
        g = self.graph
        return g.op("Concat", x[0], skip[0], axis=1), g.op("Concat", x[1], skip[1], axis=1)

    def interleaved(self, rows: Rows, row_counts: tuple[int, int]) -> Pair:
        """Interleave even and odd rows."""
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
