"""The form for GPU engines: the direct form with ordinary convolutions only. Tuned for TensorRT.

- A transposed convolution of stride 2 becomes two ordinary ones, for the even and the odd rows, which are interleaved
  after their activation. TensorRT computes ordinary convolutions in INT8, but transposed ones in float.
- The FSMN is two grouped convolutions and a depthwise one for both nets on both parts at once. Its residuals are
  additions, so no arithmetic is spent on zeros and ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frcrn_accel.graph.common import encoder_bins
from frcrn_accel.graph.direct import DirectNetwork, joined
from frcrn_accel.graph.timeline import TIME
from frcrn_accel.network.topology import DECODER_KERNELS, FSMN_ORDER

__all__ = ["PlainNetwork", "decoder_taps"]


class PlainNetwork(DirectNetwork):
    """Writes the plain form, see the module."""

    def encoder(self, name: str, x: str) -> str:
        """See `Network.encoder`."""
        weight, shift = self.encoder_weights(name)
        return self.activated(
            self.convolution(name, self.of_two_frames(name, x), weight, shift, **self.strides_and_pads)
        )

    def convolution(self, name: str, x: str, weight: str, shift: str, **attributes: Any) -> str:
        """Write one of the convolutions that do nearly all of the work. A subclass can quantize it here.

        Args:
            name: Name of the layer; for an FSMN layer followed by `.linear` or `.project`.
            x: The input.
            weight: Weight `(outputs, ...)`.
            shift: Bias `(outputs,)`; "" for none.
            attributes: Attributes of the operator.
        """
        return self.graph.op("Conv", x, weight, *([shift] if shift else []), **attributes)

    def filters(self, name: str, kernel: str) -> str:
        """Return the depthwise filters after the `.project` of an FSMN layer. A subclass can scale them here.

        Args:
            name: Name of the layer.
            kernel: The filters, `(outputs, 1, ...)`.
        """
        return kernel

    def decoder(self, name: str, inputs: list[str]) -> str:
        """Write even and odd rows as two convolutions, see `DirectNetwork.decoder`."""
        g = self.graph
        rows = [g.op("Unsqueeze", y, g.ints(4)) for y in self.decoder_rows(name, inputs)]
        y = g.op("Reshape", g.op("Concat", *rows, axis=4), g.ints(0, 0, 0, -1))
        return y if decoder_taps(name) % 2 == 0 else g.op("Slice", y, g.ints(0), g.ints(-1), g.ints(3))

    def decoder_rows(self, name: str, inputs: list[str]) -> Iterator[str]:
        """Write the even rows of a decoder stage, then as many odd rows.

        Output row `2 n + o` is the sum of the taps `k = o, o + 2, ...` on input `n - (k - o) / 2`. Along time the
        transposed convolution of 2 taps that drops a frame at each end is an ordinary one without padding.
        """
        g = self.graph
        weights, shift = self.decoder_weights(name, len(inputs))
        # (inputs, outputs, frequency, time) to (outputs, inputs, time, frequency), time reversed.
        weight = g.op("Transpose", joined(g, weights), perm=[1, 0, 3, 2])
        weight = g.op("Gather", weight, g.ints(*reversed(range(self.decoder_frames(name)))), axis=2)
        taps = decoder_taps(name)
        reach = (taps - 1) // 2  # of the even rows; the odd ones reach as far or one less
        x = self.of_two_frames(name, joined(g, inputs, axis=1))
        for odd in (0, 1):
            chosen = g.op("Gather", weight, g.ints(*reversed(range(odd, taps, 2))), axis=3)
            # The last odd row of an odd number of rows does not exist: it is computed, to be dropped.
            before = (taps - odd - 1) // 2
            yield self.activated(self.convolution(name, x, chosen, shift, pads=[0, before, 0, reach]))

    def fsmn(self, name: str, layer: int, x: str, *, along_time: bool) -> str:
        """Write an FSMN layer, see `Network.fsmn`.

        The channels of hidden and memory are, in quarters: `re` of the real part, `im` of the real part, `re` of the
        imaginary part, `im` of the imaginary part. They add to the real, the imaginary, the imaginary and, negated,
        the real part of the output.
        """
        g = self.graph
        past = FSMN_ORDER - 1
        linear, bias, project = (
            self.pair(f"{name}.fsmn", tensor, f"_L{layer}")
            for tensor in ("linear.weight", "linear.bias", "project.weight")
        )
        of_layer = f"{name}.L{layer}"
        weight = self.pointwise(*linear, *linear)
        hidden = self.convolution(f"{of_layer}.linear", x, weight, joined(g, [*bias, *bias]), group=2)
        weight = self.pointwise(*project, project[0], g.op("Neg", project[1]))
        memory = self.convolution(f"{of_layer}.project", g.op("Relu", hidden), weight, "", group=4)
        kernels = [self.fsmn_filter(name, layer, is_im_net=is_im_net) for is_im_net in (False, True)]
        if along_time:
            shape = ("batch", 4 * self.config.channels, TIME, encoder_bins()[-1])
            memory = self.time.with_last(memory, past, shape)
        else:
            kernels = [g.op("Transpose", kernel, perm=[0, 1, 3, 2]) for kernel in kernels]
        kernel = self.filters(of_layer, joined(g, [*kernels, *kernels]))
        pads = [self.time.padding(past), 0, 0, 0] if along_time else [0, past, 0, 0]
        filtered = g.op("Conv", memory, kernel, group=4 * self.config.channels, pads=pads)
        re_re, im_im, im_re, re_im = g.ops("Split", 4, filtered, axis=1)
        re, im = g.ops("Split", 2, x, axis=1)
        re_sum = g.op("Add", g.op("Add", re_re, re_im), g.op("Sub", re, im))
        im_sum = g.op("Add", g.op("Add", im_im, im_re), g.op("Add", re, im))
        return g.op("Concat", re_sum, im_sum, axis=1)


def decoder_taps(name: str) -> int:
    """Return the length of a decoder stage's kernel along frequency."""
    return DECODER_KERNELS[int(name.rpartition(".")[2])][0]
