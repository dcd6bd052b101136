"""The parts that all forms of the network share: the transforms, the order of the layers, the weights.

Weights are stored under their released key names. All that is done to them before use (a sum, a sign, an order of
taps, the folded batch norm) is written as operators on these tensors. The operators depend on constants only, so an
engine computes them once, when it loads the file.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from frcrn_accel.graph.timeline import TIME, MakeTimeline, WholePass
from frcrn_accel.graph.writer import GraphWriter, Shape
from frcrn_accel.network.topology import (
    BN_EPSILON,
    ENCODER_KERNELS,
    FRAME_SAMPLES,
    FSMN_ORDER,
    HOP_SAMPLES,
    STAGES,
    STFT_BINS,
    Config,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["FrequencyLastNetwork", "Network", "Pair", "encoder_bins"]

Pair = tuple[str, str]  # names of the real and the imaginary part
X = TypeVar("X")  # a complex tensor, as a form represents it


class Network(abc.ABC, Generic[X]):
    """Writes the network into a graph. Methods take and return names of tensors.

    Args:
        graph: Writer of the graph.
        config: Size of the network.
        timeline: Makes the `Timeline`: whole signals or steps of a stream.

    Attributes:
        batch: Size of a batch, or a name for any size.
    """

    batch: ClassVar[str | int] = "batch"

    def __init__(self, graph: GraphWriter, config: Config, timeline: MakeTimeline = WholePass) -> None:
        self.graph = graph
        self.config = config
        self.time = timeline(graph)

    def build(self, name: str, producer_version: str, properties: Mapping[str, str]) -> onnx.ModelProto:
        """Build the model, see `GraphWriter.build`. Call it once."""
        self.waveform_to_waveform("audio")
        return self.graph.build(
            "audio",
            "denoised",
            name,
            producer_version,
            properties,
            batch=self.batch,
            more_inputs=self.time.inputs,
            more_outputs=self.time.outputs,
        )

    def waveform_to_waveform(self, audio: str) -> None:
        """Write STFT, mask and inverse STFT; the output of the last node is the result."""
        g = self.graph
        with g.scope("stft"):
            kernel = self.fourier_kernel()
            spectrum = self.analysis(audio, kernel)
        x, masks = spectrum, []
        for unet in self.config.unet_names:
            with g.scope(unet):
                x = self.unet(unet, x)
                masks.append((g.op("Tanh", x), self.time.lag))
        with g.scope("mask"):
            spectrum = self.time.delayed(spectrum, 0, self.spectrum_shape)
            summands = [self.time.delayed(mask, since, self.spectrum_shape) for mask, since in masks]
            mask = summands[0] if len(summands) == 1 else g.op("Sum", *summands)
            a, b = g.ops("Split", 2, spectrum, axis=1)
            c, d = g.ops("Split", 2, mask, axis=1)
            re = g.op("Sub", g.op("Mul", a, c), g.op("Mul", b, d))
            im = g.op("Add", g.op("Mul", a, d), g.op("Mul", b, c))
            clean = g.op("Concat", re, im, axis=1)
        with g.scope("istft"):
            self.synthesis(clean, kernel)

    @property
    def spectrum_shape(self) -> Shape:
        """Shape of the result of `analysis`."""
        return ("batch", 2, STFT_BINS, TIME)

    def analysis(self, audio: str, kernel: str) -> str:
        """Write the STFT: the spectrum is `(batch, 2, 321, frames)`, or has the last two axes in the form's order."""
        g = self.graph
        audio = self.time.with_last(audio, FRAME_SAMPLES - HOP_SAMPLES, ("batch", TIME))
        spectrum = g.op("Conv", g.op("Unsqueeze", audio, g.ints(1)), kernel, strides=[HOP_SAMPLES])
        return g.op("Reshape", spectrum, g.ints(0, 2, STFT_BINS, -1))

    def synthesis(self, spectrum: str, kernel: str) -> str:
        """Write the inverse STFT, from the shape of `analysis` to `(batch, samples)`."""
        g = self.graph
        frames = g.op("Reshape", spectrum, g.ints(0, 2 * STFT_BINS, -1))
        synthesis = g.op("Mul", kernel, g.constant(stft_synthesis_scale()[:, None, None]))
        return self.time.synthesis(frames, synthesis)

    def fourier_kernel(self) -> str:
        """Compute `stft_kernel` as `(642, 1, 640)` from 640 cosines: stored, it would take 1.6 MB.

        Bin `k` at sample `n` takes cosine number `k n` for the real part, and the one a quarter turn further for the
        imaginary part; a whole turn has 640 of them.
        """
        bins = np.tile(np.arange(STFT_BINS), 2)[:, None, None]
        is_imaginary = np.repeat([False, True], STFT_BINS)[:, None, None]
        cosines = self.fourier_basis(bins, is_imaginary, FRAME_SAMPLES)
        return self.graph.op("Mul", cosines, self.graph.constant(stft_window()))

    def fourier_basis(self, bins: NDArray[Any], is_imaginary: NDArray[Any], samples: int) -> str:
        """Compute the Fourier basis at the first samples, without window: `(*bins.shape[:-1], samples)`."""
        g = self.graph
        angle = g.op("Mul", g.constant(bins, np.int32), g.constant(np.arange(samples), np.int32))
        angle = g.op("Add", angle, g.constant(is_imaginary * (FRAME_SAMPLES // 4), np.int32))
        angle = g.op("Mod", angle, g.constant(FRAME_SAMPLES, np.int32))
        cosines = np.cos(2 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES)
        return g.op("Gather", g.constant(cosines), angle, axis=0)

    @abc.abstractmethod
    def unet(self, name: str, spectrum: str) -> str:
        """Write a U-Net, from `(batch, 2, 321, frames)` to the same shape."""

    # Parts that depend on the form.

    @abc.abstractmethod
    def first_encoder(self, name: str, spectrum: str) -> X:
        """Write convolution, batch norm and activation of the first stage, from one complex channel."""

    @abc.abstractmethod
    def encoder(self, name: str, x: X) -> X:
        """Write convolution, batch norm and activation of any other stage."""

    @abc.abstractmethod
    def fsmn(self, name: str, layer: int, x: X, *, along_time: bool) -> X:
        """Write an FSMN layer along frequency or time: `re(x.re) - im(x.im)` and `re(x.im) + im(x.re)`.

        Its two nets `re` and `im` each add their input to their output.
        """

    @abc.abstractmethod
    def squeeze_excitation(self, name: str, x: X) -> X:
        """Write squeeze-and-excitation."""

    def squeeze_excitations(self, layers: Mapping[str, X]) -> list[X]:
        """Write squeeze-and-excitation of several layers that do not depend on each other.

        Args:
            layers: Input of each layer, by its name. The scope of their U-Net is open.
        """
        scaled = []
        for name, x in layers.items():
            with self.graph.scope(name.partition(".")[2]):
                scaled.append(self.squeeze_excitation(name, x))
        return scaled

    # Parts that all forms share.

    def encoded(self, name: str, spectrum: str) -> tuple[X, list[X]]:
        """Write a U-Net up to the bottleneck; return the output of that and the skip connections."""
        g = self.graph
        outputs: dict[str, X] = {}
        for i in range(STAGES):
            if i == 0:
                with g.scope("encoders.0"):
                    x = self.first_encoder(f"{name}.encoders.0", spectrum)
            else:
                with g.scope(f"fsmn_enc.{i}"):
                    x = self.fsmn(f"{name}.fsmn_enc.{i}", 1, x, along_time=False)
                with g.scope(f"encoders.{i}"):
                    x = self.encoder(f"{name}.encoders.{i}", x)
            if i < STAGES - 1:
                outputs[f"{name}.se_layers_enc.{i}"] = x
        # Only the skip connections take the scaled outputs; the next stage takes the unscaled one.
        skips = self.squeeze_excitations(outputs)
        for layer in (1, 2):
            with g.scope(f"fsmn.L{layer}"):
                x = self.fsmn(f"{name}.fsmn", layer, x, along_time=True)
        return x, skips

    def linear(self, name: str, x: str) -> str:
        """Write the complex 1x1 convolution that ends a U-Net, from `(batch, 2, ...)` to the same shape."""
        g = self.graph
        (w_re, w_im), (b_re, b_im) = (self.pair(f"{name}.linear.conv", kind) for kind in ("weight", "bias"))
        weight = self.block(w_re, w_im)
        bias = g.op("Concat", g.op("Sub", b_re, b_im), g.op("Add", b_re, b_im), axis=0)
        return g.op("Conv", x, weight, bias)

    def batch_norm(self, name: str, convolution: str, which: int) -> tuple[str, str]:
        """Compute scale and shift of one part; the shift includes the bias of the complex convolution before it."""
        g = self.graph
        gamma, beta, mean, variance = (
            g.weight(f"{name}.bn.bn_{('re', 'im')[which]}.{tensor}")
            for tensor in ("weight", "bias", "running_mean", "running_var")
        )
        bias = g.op(("Sub", "Add")[which], *self.pair(f"{name}.{convolution}", "bias"))
        scale = g.op("Div", gamma, g.op("Sqrt", g.op("Add", variance, g.constant(BN_EPSILON))))
        return scale, g.op("Add", g.op("Mul", g.op("Sub", bias, mean), scale), beta)

    def block_row(self, w_re: str, w_im: str, which: int) -> str:
        """Compute a row of `[[Wr, -Wi], [Wi, Wr]]`, on axis 1."""
        g = self.graph
        parts = (w_re, g.op("Neg", w_im)) if which == 0 else (w_im, w_re)
        return g.op("Concat", *parts, axis=1)

    def block(self, w_re: str, w_im: str) -> str:
        """Compute `[[Wr, -Wi], [Wi, Wr]]` on axes 0 and 1."""
        return self.graph.op("Concat", *[self.block_row(w_re, w_im, which) for which in (0, 1)], axis=0)

    def fsmn_filter(self, name: str, layer: int, *, is_im_net: bool) -> str:
        """Compute the depthwise filter. Its residual (input added to output) is an extra 1 in the last tap."""
        g = self.graph
        tap = np.zeros((1, 1, FSMN_ORDER, 1), np.float32)
        tap[0, 0, -1, 0] = 1
        return g.op("Add", self.pair(f"{name}.fsmn", "conv1.weight", f"_L{layer}")[is_im_net], g.constant(tap))

    def excitation_scales(self, name: str, means: str) -> Pair:
        """Compute the scales of both parts, `(batch, channels, 1, 1)`, from means `(batch, 2 * channels, 1, 1)`.

        The four pairs of dense layers (two nets on two parts) are two grouped 1x1 convolutions.
        """
        g = self.graph

        def layer(x: str, number: int, groups: int) -> str:
            weight, bias = (
                g.op("Concat", *[g.weight(f"{name}.fc_{part}.{number}.{kind}") for part in "riri"], axis=0)
                for kind in ("weight", "bias")
            )
            return g.op("Conv", x, g.op("Unsqueeze", weight, g.ints(2, 3)), bias, group=groups)

        hidden = g.op("Relu", layer(means, 0, 2))
        excitations = g.op("Sigmoid", layer(hidden, 2, 4))
        r_of_re, i_of_re, r_of_im, i_of_im = g.ops("Split", 4, excitations, axis=1)
        return g.op("Sub", r_of_re, i_of_im), g.op("Add", r_of_im, i_of_re)

    def pair(self, name: str, tensor: str, suffix: str = "") -> Pair:
        """Return the two weights `name_re` and `name_im`."""
        return self.graph.weight(f"{name}_re{suffix}.{tensor}"), self.graph.weight(f"{name}_im{suffix}.{tensor}")


class FrequencyLastNetwork(Network[X]):
    """A form in which time comes before frequency, and decoders take whole tensors, not even and odd rows apart."""

    @property
    def spectrum_shape(self) -> Shape:
        """Shape of the result of `analysis`."""
        return ("batch", 2, TIME, STFT_BINS)

    def analysis(self, audio: str, kernel: str) -> str:
        """Write the STFT: `(batch, 2, frames, 321)`."""
        return self.graph.op("Transpose", super().analysis(audio, kernel), perm=[0, 1, 3, 2])

    def synthesis(self, spectrum: str, kernel: str) -> str:
        """See `Network.synthesis`."""
        return super().synthesis(self.graph.op("Transpose", spectrum, perm=[0, 1, 3, 2]), kernel)

    def unet(self, name: str, spectrum: str) -> str:
        """Write a U-Net, from `(batch, 2, frames, 321)` to the same shape."""
        g = self.graph
        lag = self.time.lag
        x, skips = self.encoded(name, spectrum)
        heights = encoder_bins()
        for i in range(STAGES - 1):
            with g.scope(f"decoders.{i}"):
                height = heights[STAGES - 1 - i]
                inputs = [x, self.delayed(skips.pop(), lag, height)] if i > 0 else [x]
                x = self.decoder(f"{name}.decoders.{i}", inputs)
                self.time.decoded(i)
            with g.scope(f"fsmn_dec.{i}"):
                x = self.fsmn(f"{name}.fsmn_dec.{i}", 1, x, along_time=False)
            if i < STAGES - 2:
                with g.scope(f"se_layers_dec.{i}"):
                    x = self.squeeze_excitation(f"{name}.se_layers_dec.{i}", x)
        with g.scope(f"decoders.{STAGES - 1}"):
            y = self.last_decoder(f"{name}.decoders.{STAGES - 1}", x, skips.pop(), lag)
            self.time.decoded(STAGES - 1)
        with g.scope("linear"):
            return self.linear(name, y)

    def decoder_frames(self, name: str) -> int:
        """Return the number of input frames for each output frame of a decoder stage."""
        return 1 + self.time.looks_ahead(int(name.rpartition(".")[2]))

    @abc.abstractmethod
    def delayed(self, x: X, since: int, height: int) -> X:
        """See `Timeline.delayed`."""

    @abc.abstractmethod
    def decoder(self, name: str, inputs: list[X]) -> X:
        """Write transposed convolution, batch norm and activation of a stage, from the stage before and the skip."""

    @abc.abstractmethod
    def last_decoder(self, name: str, x: X, skip: X, since: int) -> str:
        """Write the last stage, to one complex channel: `(batch, 2, frames, 321)`.

        Args:
            name: Name of the stage.
            x: Output of the stage before.
            skip: Output of the first encoder stage, still to be delayed.
            since: Lag at which `skip` was written.
        """


def encoder_bins() -> list[int]:
    """Return the height of the output of each encoder stage."""
    bins: list[int] = []
    for kernel, _ in ENCODER_KERNELS:
        bins.append(((bins[-1] if bins else STFT_BINS) - kernel) // 2 + 1)
    return bins
