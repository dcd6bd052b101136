"""What the forms of the network have in common: the transforms, the order of the layers, the weights.

Whatever a weight needs before it can be used (a sum, a sign, an order of taps, the folded batch norm) is written as
operators on the tensor that is stored under its released key name. They depend on constants only, so an engine
computes them once, when it loads the file.
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
X = TypeVar("X")  # how a form holds a complex tensor


class Network(abc.ABC, Generic[X]):
    """Writes the network into a graph. Methods take and return names of tensors.

    Args:
        graph: The graph.
        config: Size of the network.
        timeline: What it does along time.

    Attributes:
        batch: Size of a batch; a name for any size.
    """

    batch: ClassVar[str | int] = "batch"

    def __init__(self, graph: GraphWriter, config: Config, timeline: MakeTimeline = WholePass) -> None:
        self.graph = graph
        self.config = config
        self.time = timeline(graph)

    def build(self, name: str, producer_version: str, properties: Mapping[str, str]) -> onnx.ModelProto:
        """The model, see `GraphWriter.build`. To be called once."""
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
        """STFT, mask and inverse; the last node's output is the result."""
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
        """Of what `analysis` gives."""
        return ("batch", 2, STFT_BINS, TIME)

    def analysis(self, audio: str, kernel: str) -> str:
        """The spectrum, `(batch, 2, 321, frames)`, or with the last two axes as the form wants them."""
        g = self.graph
        audio = self.time.with_last(audio, FRAME_SAMPLES - HOP_SAMPLES, ("batch", TIME))
        spectrum = g.op("Conv", g.op("Unsqueeze", audio, g.ints(1)), kernel, strides=[HOP_SAMPLES])
        return g.op("Reshape", spectrum, g.ints(0, 2, STFT_BINS, -1))

    def synthesis(self, spectrum: str, kernel: str) -> str:
        """From what `analysis` gives to the waveform, `(batch, samples)`."""
        g = self.graph
        frames = g.op("Reshape", spectrum, g.ints(0, 2 * STFT_BINS, -1))
        synthesis = g.op("Mul", kernel, g.constant(stft_synthesis_scale()[:, None, None]))
        return self.time.synthesis(frames, synthesis)

    def fourier_kernel(self) -> str:
        """`stft_kernel` as `(642, 1, 640)`, computed from 640 cosines: stored, it would be 1.6 MB.

        Bin `k` of sample `n` takes angle number `k n` for the real part, and a quarter turn more for the imaginary
        part; a whole turn has 640 of them.
        """
        bins = np.tile(np.arange(STFT_BINS), 2)[:, None, None]
        is_imaginary = np.repeat([False, True], STFT_BINS)[:, None, None]
        cosines = self.fourier_basis(bins, is_imaginary, FRAME_SAMPLES)
        return self.graph.op("Mul", cosines, self.graph.constant(stft_window()))

    def fourier_basis(self, bins: NDArray[Any], is_imaginary: NDArray[Any], samples: int) -> str:
        """The parts of bins at the first samples of a window, without the window: `(*bins.shape[:-1], samples)`."""
        g = self.graph
        angle = g.op("Mul", g.constant(bins, np.int32), g.constant(np.arange(samples), np.int32))
        angle = g.op("Add", angle, g.constant(is_imaginary * (FRAME_SAMPLES // 4), np.int32))
        angle = g.op("Mod", angle, g.constant(FRAME_SAMPLES, np.int32))
        cosines = np.cos(2 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES)
        return g.op("Gather", g.constant(cosines), angle, axis=0)

    @abc.abstractmethod
    def unet(self, name: str, spectrum: str) -> str:
        """One U-Net, `(batch, 2, 321, frames)` to the same."""

    # What the form decides.

    @abc.abstractmethod
    def first_encoder(self, name: str, spectrum: str) -> X:
        """The convolution, batch norm and activation of the first stage, from one complex channel."""

    @abc.abstractmethod
    def encoder(self, name: str, x: X) -> X:
        """The same of any other stage."""

    @abc.abstractmethod
    def fsmn(self, name: str, layer: int, x: X, *, along_time: bool) -> X:
        """An FSMN layer along frequency or time: `re(x.re) - im(x.im)` and `re(x.im) + im(x.re)`.

        Each of its nets has a residual of its own.
        """

    @abc.abstractmethod
    def excited(self, name: str, x: X) -> X:
        """Squeeze-and-excitation."""

    def each_excited(self, layers: Mapping[str, X]) -> list[X]:
        """The same of several that do not depend on each other.

        Args:
            layers: The input of each, by its name. The scope of their U-Net is open.
        """
        excited = []
        for name, x in layers.items():
            with self.graph.scope(name.partition(".")[2]):
                excited.append(self.excited(name, x))
        return excited

    # What all forms share.

    def encoded(self, name: str, spectrum: str) -> tuple[X, list[X]]:
        """The half of a U-Net up to the bottleneck: what comes out of it, and the skip connections."""
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
        # The scaled outputs go into the skip connections only; the next stage got the plain one.
        skips = self.each_excited(outputs)
        for layer in (1, 2):
            with g.scope(f"fsmn.L{layer}"):
                x = self.fsmn(f"{name}.fsmn", layer, x, along_time=True)
        return x, skips

    def linear(self, name: str, x: str) -> str:
        """The complex 1x1 convolution that ends a U-Net, `(batch, 2, ...)` to the same."""
        g = self.graph
        (w_re, w_im), (b_re, b_im) = (self.pair(f"{name}.linear.conv", kind) for kind in ("weight", "bias"))
        weight = self.block(w_re, w_im)
        bias = g.op("Concat", g.op("Sub", b_re, b_im), g.op("Add", b_re, b_im), axis=0)
        return g.op("Conv", x, weight, bias)

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

    def block(self, w_re: str, w_im: str) -> str:
        """`[[Wr, -Wi], [Wi, Wr]]` on axes 0 and 1."""
        return self.graph.op("Concat", *[self.block_row(w_re, w_im, which) for which in (0, 1)], axis=0)

    def fsmn_filter(self, name: str, layer: int, *, is_im_net: bool) -> str:
        """Weight of the depthwise filter, with the identity (its input is added to its output) in the last tap."""
        g = self.graph
        tap = np.zeros((1, 1, FSMN_ORDER, 1), np.float32)
        tap[0, 0, -1, 0] = 1
        return g.op("Add", self.pair(f"{name}.fsmn", "conv1.weight", f"_L{layer}")[is_im_net], g.constant(tap))

    def squeeze_excitation(self, name: str, means: str) -> Pair:
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

    def pair(self, name: str, tensor: str, suffix: str = "") -> Pair:
        """The two weights `name_re` and `name_im`."""
        return self.graph.weight(f"{name}_re{suffix}.{tensor}"), self.graph.weight(f"{name}_im{suffix}.{tensor}")


class FrequencyLastNetwork(Network[X]):
    """A form with frequency as the last axis but channels, whose decoders take whole tensors."""

    @property
    def spectrum_shape(self) -> Shape:
        """Of what `analysis` gives."""
        return ("batch", 2, TIME, STFT_BINS)

    def analysis(self, audio: str, kernel: str) -> str:
        """The spectrum, `(batch, 2, frames, 321)`."""
        return self.graph.op("Transpose", super().analysis(audio, kernel), perm=[0, 1, 3, 2])

    def synthesis(self, spectrum: str, kernel: str) -> str:
        """See `Network.synthesis`."""
        return super().synthesis(self.graph.op("Transpose", spectrum, perm=[0, 1, 3, 2]), kernel)

    def unet(self, name: str, spectrum: str) -> str:
        """One U-Net, `(batch, 2, frames, 321)` to the same."""
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
                    x = self.excited(f"{name}.se_layers_dec.{i}", x)
        with g.scope(f"decoders.{STAGES - 1}"):
            y = self.last_decoder(f"{name}.decoders.{STAGES - 1}", x, skips.pop(), lag)
            self.time.decoded(STAGES - 1)
        with g.scope("linear"):
            return self.linear(name, y)

    def decoder_frames(self, name: str) -> int:
        """How many frames a decoder stage takes in."""
        return 1 + self.time.looks_ahead(int(name.rpartition(".")[2]))

    @abc.abstractmethod
    def delayed(self, x: X, since: int, height: int) -> X:
        """See `Timeline.delayed`."""

    @abc.abstractmethod
    def decoder(self, name: str, inputs: list[X]) -> X:
        """The transposed convolution, batch norm and activation of a stage, from the one before and the skip."""

    @abc.abstractmethod
    def last_decoder(self, name: str, x: X, skip: X, since: int) -> str:
        """The same of the last stage, to one complex channel: `(batch, 2, frames, 321)`.

        Args:
            name: Of the stage.
            x: From the stage before.
            skip: From the first encoder stage, to be delayed: it was written when the lag was `since`.
            since: See `skip`.
        """


def encoder_bins() -> list[int]:
    """Height of the output of each encoder stage."""
    bins: list[int] = []
    for kernel, _ in ENCODER_KERNELS:
        bins.append(((bins[-1] if bins else STFT_BINS) - kernel) // 2 + 1)
    return bins
