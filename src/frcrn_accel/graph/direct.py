"""The form for engines with matrix units and low precision: few, large convolutions. Tuned for OpenVINO on the CPU.

- A complex tensor is a single real one, `(batch, 2 * channels, time, frequency)`, real parts first. A complex
  convolution is a real one with the weight `[[Wr, -Wi], [Wi, Wr]]`: a third more arithmetic than Gauss's product,
  which matrix units do in less time than the additions around the three products take.
- Frequency is the last axis. The FSMN filters run along it, over adjacent memory: with time last they took twice as
  long, and the whole network a quarter longer.
- Batch norm is folded into the weight and the bias of the convolution before it.
- The FSMN has two branches: the net that keeps the parts (`re` on each of them) and the net that swaps them (`im`).
  Engines fuse their sum into the filters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frcrn_accel.graph.common import FrequencyLastNetwork, Pair, encoder_bins
from frcrn_accel.graph.timeline import TIME
from frcrn_accel.graph.writer import GraphWriter
from frcrn_accel.network.topology import DECODER_KERNELS, FSMN_ORDER, LEAKY_SLOPE, STAGES, STFT_BINS

__all__ = ["DirectNetwork", "joined"]


class DirectNetwork(FrequencyLastNetwork[str]):
    """Writes the direct form, see the module."""

    # Convolutions.

    def first_encoder(self, name: str, spectrum: str) -> str:
        """See `Network.first_encoder`."""
        weight, shift = self.encoder_weights(name)
        return self.strided(self.of_two_frames(name, spectrum), weight, shift)

    def encoder(self, name: str, x: str) -> str:
        """See `Network.encoder`."""
        weight, shift = self.encoder_weights(name)
        x = self.of_two_frames(name, x)
        return self.strided(*self.operands(name, x, weight, output_axis=0), shift)

    def strided(self, x: str, weight: str, shift: str) -> str:
        """Write the convolution of an encoder stage with its activation."""
        return self.activated(self.graph.op("Conv", x, weight, shift, **self.strides_and_pads))

    @property
    def strides_and_pads(self) -> dict[str, list[int]]:
        """Attributes of an encoder's convolution."""
        pad = self.time.padding(1)
        return {"strides": [1, 2], "pads": [pad, 0, pad, 0]}

    def of_two_frames(self, name: str, x: str, channels: int = 0) -> str:
        """Prepend the last frame of the previous step to the input of a stage that takes two frames.

        Args:
            name: Name of the stage.
            x: The input.
            channels: Channels of the input; 0 for those of the stage.
        """
        _, unit, stage = name.split(".")
        i = int(stage)
        if unit == "decoders" and self.decoder_frames(name) == 1:
            return x
        if unit == "encoders":
            height = encoder_bins()[i - 1] if i else STFT_BINS
            channels = channels or (2 * self.config.channels if i else 2)
        else:
            height = encoder_bins()[STAGES - 1 - i]
            channels = channels or (4 if i else 2) * self.config.channels
        return self.time.with_last(x, 1, ("batch", channels, TIME, height))

    def delayed(self, x: str, since: int, height: int) -> str:
        """See `Timeline.delayed`."""
        return self.time.delayed(x, since, ("batch", 2 * self.config.channels, TIME, height))

    def encoder_weights(self, name: str) -> Pair:
        """Compute weight `(2 * channels, inputs, time, frequency)` and bias, with the batch norm folded in."""
        g = self.graph
        scale, shift = self.batch_norms(name, "conv.conv")
        weight = self.block(*self.pair(f"{name}.conv.conv", "weight"))
        weight = g.op("Mul", weight, g.op("Unsqueeze", scale, g.ints(1, 2, 3)))
        return g.op("Transpose", weight, perm=[0, 1, 3, 2]), shift

    def decoder(self, name: str, inputs: list[str]) -> str:
        """Write a transposed convolution of the concatenated inputs, with batch norm and activation."""
        g = self.graph
        weights, shift = self.decoder_weights(name, len(inputs))
        weight = g.op("Transpose", joined(g, weights), perm=[0, 1, 3, 2])
        x = self.of_two_frames(name, joined(g, inputs, axis=1))
        x, weight = self.operands(name, x, weight, output_axis=1)
        return self.activated(g.op("ConvTranspose", x, weight, shift, strides=[1, 2], pads=self.decoder_pads(name)))

    def operands(self, name: str, x: str, weight: str, output_axis: int) -> Pair:
        """Return input and weight of a stage's convolution. A subclass can quantize them here."""
        return x, weight

    def last_decoder(self, name: str, x: str, skip: str, since: int) -> str:
        """Write the last stage, see `FrequencyLastNetwork.last_decoder`.

        With few outputs a transposed convolution is slow. Here a 1x1 convolution computes all products, one for each
        output and tap, and a transposed one whose weight is 0 and 1 adds them up at their positions.
        """
        g = self.graph
        weights, shift = self.decoder_weights(name, 2)
        taps = (DECODER_KERNELS[-1][0], self.decoder_frames(name))
        products, of_skip = [
            # (2 * channels, 2, *taps) to (products, 2 * channels, 1, 1)
            g.op(
                "Conv",
                x,
                g.op(
                    "Reshape",
                    g.op("Transpose", weight, perm=[1, 2, 3, 0]),
                    g.ints(-1, 2 * self.config.channels, 1, 1),
                ),
            )
            for x, weight in zip((x, skip), weights, strict=True)
        ]
        count = 2 * taps[0] * taps[1]
        # Delay the products rather than the skip connection: they are fewer.
        of_skip = self.time.delayed(of_skip, since, ("batch", count, TIME, encoder_bins()[0]))
        places = np.eye(count).reshape(count, 2, *taps).swapaxes(2, 3)
        y = self.of_two_frames(name, g.op("Add", products, of_skip), count)
        return self.activated(
            g.op("ConvTranspose", y, g.constant(places), shift, strides=[1, 2], pads=self.decoder_pads(name))
        )

    def decoder_weights(self, name: str, inputs: int) -> tuple[list[str], str]:
        """Compute the weights for each input, `(2 * channels, outputs, frequency, time)`, and the bias."""
        g = self.graph
        c = self.config.channels
        scale, shift = self.batch_norms(name, "transconv.tconv")
        scale = g.op("Unsqueeze", scale, g.ints(0, 2, 3))
        parts = self.pair(f"{name}.transconv.tconv", "weight")
        weights = []
        for i in range(inputs):
            w_re, w_im = (g.op("Slice", w, g.ints(i * c), g.ints((i + 1) * c), g.ints(0)) for w in parts)
            # Inputs are the first axis, so the block matrix is transposed.
            weight = g.op("Mul", self.block(w_re, g.op("Neg", w_im)), scale)
            if self.decoder_frames(name) == 1:
                weight = g.op("ReduceSum", weight, g.ints(3), keepdims=1)
            weights.append(weight)
        return weights, shift

    def decoder_pads(self, name: str) -> list[int]:
        """Return the pads of a decoder's transposed convolution, which drop frames beyond both ends."""
        beyond = self.decoder_frames(name) - 1
        return [beyond, 0, beyond, 0]

    def batch_norms(self, name: str, convolution: str) -> Pair:
        """Compute scale and shift of both parts, `(2 * outputs,)`."""
        scales, shifts = zip(*(self.batch_norm(name, convolution, which) for which in (0, 1)), strict=True)
        return joined(self.graph, scales), joined(self.graph, shifts)

    def activated(self, x: str) -> str:
        """Write LeakyReLU."""
        return self.graph.op("LeakyRelu", x, alpha=LEAKY_SLOPE)

    # FSMN.

    def fsmn(self, name: str, layer: int, x: str, *, along_time: bool) -> str:
        """See `Network.fsmn`."""
        g = self.graph
        c = self.config.channels
        past = FSMN_ORDER - 1
        pads = [self.time.padding(past), 0, 0, 0] if along_time else [0, past, 0, 0]
        one = np.eye(c, dtype=np.float32)
        # The residuals of all four nets.
        y = g.op("Conv", x, g.constant(np.block([[one, -one], [one, one]])[..., None, None]))
        linear, bias, project = (
            self.pair(f"{name}.fsmn", tensor, f"_L{layer}")
            for tensor in ("linear.weight", "linear.bias", "project.weight")
        )
        zero = g.constant(np.zeros((c, c)))
        for is_im_net in (False, True):
            weight, shift, p = linear[is_im_net], bias[is_im_net], project[is_im_net]
            hidden = g.op("Conv", x, self.pointwise(weight, weight), joined(g, [shift, shift]), group=2)
            hidden = g.op("Relu", hidden)
            if is_im_net:
                rows = [g.op("Concat", *row, axis=1) for row in ((zero, g.op("Neg", p)), (p, zero))]
                memory = g.op("Conv", hidden, self.pointwise(*rows))
            else:
                memory = g.op("Conv", hidden, self.pointwise(p, p), group=2)
            kernel = self.fsmn_filter(name, layer, is_im_net=is_im_net)
            if along_time:
                memory = self.time.with_last(memory, past, ("batch", 2 * c, TIME, encoder_bins()[-1]))
            else:
                kernel = g.op("Transpose", kernel, perm=[0, 1, 3, 2])
            filtered = g.op("Conv", memory, joined(g, [kernel, kernel]), group=2 * c, pads=pads)
            y = g.op("Add", filtered, y)
        return y

    def pointwise(self, *rows: str) -> str:
        """Stack matrices into the weight of a 1x1 convolution."""
        return self.graph.op("Unsqueeze", joined(self.graph, rows), self.graph.ints(2, 3))

    # Squeeze-and-excitation.

    def squeeze_excitation(self, name: str, x: str) -> str:
        """Write squeeze-and-excitation, averaging over time as `self.time` does."""
        g = self.graph
        means = self.time.averaged(self.time.mean(x), 2 * self.config.channels)
        scale = self.excitation_scales(name, means)
        return g.op("Mul", x, g.op("Concat", *scale, axis=1))


def joined(graph: GraphWriter, names: Sequence[str], axis: int = 0) -> str:
    """Concatenate tensors along an axis."""
    return names[0] if len(names) == 1 else graph.op("Concat", *names, axis=axis)
