"""FRCRN in PyTorch: the reference for every engine, and the module to train.

`network.topology` explains the layers: FSMN (feedforward sequential memory network), squeeze-and-excitation and the
complex mask (an estimate of the cIRM, the complex ideal ratio mask).

Complex tensors are real ones with twice the channels, `(batch, 2 * channels, frequency, time)`, real parts first. A
complex convolution is then a single real convolution with the weight `[[Wr, -Wi], [Wi, Wr]]`: it equals four real
ones, but is faster. Modules and parameters have the released key names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frcrn_accel.network.operators import Operators
from frcrn_accel.network.state_dict import Weights
from frcrn_accel.network.topology import (
    BN_EPSILON,
    DECODER_KERNELS,
    ENCODER_KERNELS,
    FRAME_SAMPLES,
    FSMN_ORDER,
    HOP_SAMPLES,
    LOOKAHEAD_FRAMES,
    SE_REDUCTION,
    STAGES,
    STFT_BINS,
    Config,
    required_config,
    stft_kernel,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["FRCRN", "SqueezeExcitation", "build_network", "complex_product"]


def build_network(weights: Weights, operators: Operators | None = None) -> FRCRN:
    """Build a network with given weights, in evaluation mode.

    Args:
        weights: As `checkpoint.load_checkpoint` returns them.
        operators: Operators between the convolutions; by default plain PyTorch.

    Raises:
        ValueError: These are not the weights of an FRCRN.
    """
    network = FRCRN(required_config(weights), operators)
    network.load_state_dict({key: torch.tensor(value) for key, value in weights.items()}, strict=False)
    return network.eval()


class FRCRN(nn.Module):
    """The whole network, from waveform to waveform at 16 kHz.

    Args:
        config: Size of the network.
        operators: Operators between the convolutions; by default plain PyTorch.

    Attributes:
        config: As given.
        lookahead: Frames that each U-Net looks ahead, 0 to 7 (the default), see `graph.timeline.Stepwise`.
    """

    kernel: Tensor
    synthesis_scale: Tensor
    squared_window: Tensor

    def __init__(self, config: Config, operators: Operators | None = None) -> None:
        super().__init__()
        self.config = config
        self.lookahead = LOOKAHEAD_FRAMES
        self.register_buffer("kernel", torch.tensor(stft_kernel())[:, None], persistent=False)
        self.register_buffer(
            "synthesis_scale", torch.tensor(stft_synthesis_scale()).view(2, STFT_BINS, 1), persistent=False
        )
        squared_window = torch.tensor(stft_window() ** 2, dtype=torch.float32).view(1, -1, 1)
        self.register_buffer("squared_window", squared_window, persistent=False)
        for name in config.unet_names:
            self.add_module(name, _UNet(config.channels, operators or Operators()))

    def forward(self, audio: Tensor) -> Tensor:
        """Denoise a batch.

        Args:
            audio: `(batch, samples)`, at least 640 samples.

        Returns:
            The denoised samples that whole frames cover: `(batch, samples - samples % 320)`.
        """
        spectrum = self.analyse(audio)
        return self.synthesise(complex_product(spectrum, self.mask(spectrum)))

    def hold_statistics(self) -> None:
        """Normalise with the learnt statistics until the next `train()`."""
        for module in self.modules():
            if isinstance(module, _ComplexBatchNorm):
                module.eval()

    def analyse(self, audio: Tensor) -> Tensor:
        """Compute the STFT, from `(batch, samples)` to `(batch, 2, 321, frames)`."""
        spectrum = F.conv1d(audio[:, None], self.kernel, stride=HOP_SAMPLES)
        return spectrum.view(audio.shape[0], 2, STFT_BINS, -1)

    def mask(self, spectrum: Tensor) -> Tensor:
        """Estimate the complex mask of a spectrum, both `(batch, 2, 321, frames)`.

        Each U-Net takes the output of the one before it; the mask is the sum of the tanh of their outputs.
        """
        x = spectrum.permute(0, 2, 3, 1).contiguous()
        mask = torch.zeros_like(x)
        for name in self.config.unet_names:
            x = self.get_submodule(name)(x, self.lookahead)
            mask = mask + torch.tanh(x)
        return mask.permute(0, 3, 1, 2)

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """Compute the inverse STFT, from `(batch, 2, 321, frames)` to `(batch, 320 * (frames + 1))`."""
        scaled = (spectrum * self.synthesis_scale).flatten(1, 2)
        audio = F.conv_transpose1d(scaled, self.kernel, stride=HOP_SAMPLES)
        windows = self.squared_window.expand(1, -1, spectrum.shape[-1])
        output_size = (1, audio.shape[-1])
        # The 1e-8 is upstream's; without it the very first sample, where the window is 0, would be 0 / 0.
        overlap = F.fold(windows, output_size, (1, FRAME_SAMPLES), stride=(1, HOP_SAMPLES)).view(1, 1, -1)
        return (audio / (overlap + 1e-8))[:, 0]


class _UNet(nn.Module):
    def __init__(self, channels: int, operators: Operators) -> None:
        super().__init__()
        c = channels
        self.operators = operators
        self.encoders = nn.ModuleList(
            _Encoder(c if i else 1, c, kernel, operators) for i, kernel in enumerate(ENCODER_KERNELS)
        )
        # nn.Identity keeps the released numbering where a stage has no such layer.
        self.fsmn_enc = nn.ModuleList(_ComplexFsmn(c, 1, operators) if i else nn.Identity() for i in range(STAGES))
        self.se_layers_enc = nn.ModuleList(SqueezeExcitation(c) for _ in range(STAGES - 1))
        self.fsmn = _ComplexFsmn(c, 2, operators, layers=2)
        self.decoders = nn.ModuleList(
            _Decoder(2 * c if i else c, 1 if i == STAGES - 1 else c, kernel, operators, skip=i > 0)
            for i, kernel in enumerate(DECODER_KERNELS)
        )
        self.fsmn_dec = nn.ModuleList(_ComplexFsmn(c, 1, operators) for _ in range(STAGES - 1))
        self.se_layers_dec = nn.ModuleList(SqueezeExcitation(c) for _ in range(STAGES - 2))
        self.linear = _PointwiseComplex()

    def forward(self, x: Tensor, lookahead: int) -> Tensor:
        skips = []
        for i, (fsmn, encoder) in enumerate(zip(self.fsmn_enc, self.encoders, strict=True)):
            x = encoder(fsmn(x))
            if i < STAGES - 1:
                # Only the skip connection is scaled; the next stage takes the unscaled output.
                x, means = self.operators.means(x)
                skips.append((x, self.se_layers_enc[i](means)))
        x = self.fsmn(x)
        scale = None
        for i, decoder in enumerate(self.decoders):
            if i > 0:
                x = self.operators.concatenate(x, scale, *skips.pop())
            x = decoder(x, i >= STAGES - lookahead)
            if i < STAGES - 1:
                x = self.fsmn_dec[i](x)
            scale = None
            if i < STAGES - 2:
                x, means = self.operators.means(x)
                scale = self.se_layers_dec[i](means)
        return cast(Tensor, self.linear(x))


class _Encoder(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], operators: Operators) -> None:
        super().__init__()
        self.operators = operators
        self.conv = nn.ModuleDict(
            {f"conv_{part}": nn.Conv2d(inputs, outputs, kernel, (2, 1), (0, 1)) for part in ("re", "im")}
        )
        self.bn = _ComplexBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _complex_weight(self.conv["conv_re"], self.conv["conv_im"])

        def convolve(scale: Tensor) -> Tensor:
            scaled = weight * scale[:, None, None, None]
            y = F.conv2d(x.permute(0, 3, 1, 2), scaled, stride=(2, 1), padding=(0, 1))
            return y.permute(0, 2, 3, 1)

        return self.operators.leaky_relu(*self.bn(convolve, bias))


class _Decoder(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], operators: Operators, *, skip: bool
    ) -> None:
        super().__init__()
        self.operators = operators
        self.skip = skip
        self.transconv = nn.ModuleDict(
            {f"tconv_{part}": nn.ConvTranspose2d(inputs, outputs, kernel, (2, 1), (0, 1)) for part in ("re", "im")}
        )
        self.bn = _ComplexBatchNorm(outputs)

    def forward(self, x: Tensor, looks_ahead: bool) -> Tensor:
        re, im = self.transconv["tconv_re"], self.transconv["tconv_im"]
        weight, bias = _complex_weight(re, im, transposed=True)
        if not looks_ahead:
            # Use the current frame instead of the next one.
            weight = weight.sum(dim=3, keepdim=True)
            x = x[:, :, :-1]
        if self.skip:
            # The stage before, then the skip connection, each with its real parts first.
            weight = weight.view(2, 2, -1, *weight.shape[1:]).transpose(0, 1).flatten(0, 2)

        def convolve(scale: Tensor) -> Tensor:
            scaled = weight * scale[:, None, None]
            y = F.conv_transpose2d(x.permute(0, 3, 1, 2), scaled, stride=(2, 1), padding=(0, weight.shape[3] - 1))
            return y.permute(0, 2, 3, 1)

        return self.operators.leaky_relu(*self.bn(convolve, bias))


class _PointwiseComplex(nn.Module):
    """The 1x1 convolution on a single complex channel that ends a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_re = nn.Conv2d(1, 1, 1)
        self.conv_im = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = _complex_weight(self.conv_re, self.conv_im)
        return x[..., :1] * weight[:, 0, 0, 0] + x[..., 1:] * weight[:, 1, 0, 0] + bias


class _ComplexBatchNorm(nn.Module):
    """Batch norm of the real and the imaginary parts, each on its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn_re = nn.BatchNorm2d(channels, BN_EPSILON)
        self.bn_im = nn.BatchNorm2d(channels, BN_EPSILON)

    def forward(self, convolve: Callable[[Tensor], Tensor], bias: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise the output of a convolution.

        Args:
            convolve: Takes a factor for each output channel and returns the convolution without its bias.
            bias: Bias of the convolution.

        Returns:
            The normalised output without its bias, and the bias.
        """
        weight, offset = self._both("weight"), self._both("bias")
        mean, variance = self._both("running_mean") - bias, self._both("running_var")
        if not self.training:
            # Folded into the weights, the scale costs nothing.
            scale = weight * (variance + BN_EPSILON).rsqrt()
            return convolve(scale), offset - mean * scale
        y = convolve(torch.ones_like(weight)).permute(0, 3, 1, 2)
        mean = mean.detach()
        y = F.batch_norm(y, mean, variance, weight, None, True, cast(float, self.bn_re.momentum), BN_EPSILON)
        self._keep("running_mean", mean + bias.detach())
        self._keep("running_var", variance)
        # Subtracting the mean cancels the bias, but distributed training needs a gradient for it.
        return y.permute(0, 2, 3, 1), offset + 0 * bias

    def _both(self, name: str) -> Tensor:
        return torch.cat([getattr(self.bn_re, name), getattr(self.bn_im, name)])

    def _keep(self, name: str, value: Tensor) -> None:
        for bn, part in zip((self.bn_re, self.bn_im), value.chunk(2), strict=True):
            getattr(bn, name).copy_(part)


class _ComplexFsmn(nn.Module):
    """Complex FSMN (feedforward sequential memory network): a learnt FIR filter over 20 bins or frames.

    Args:
        channels: Complex channels.
        axis: 1 to run along frequency, from low to high bins; 2 to run along time, over past frames.
        operators: Operators between the convolutions.
        layers: Number of layers in sequence.
    """

    def __init__(self, channels: int, axis: int, operators: Operators, layers: int = 1) -> None:
        super().__init__()
        self.operators = operators
        self.axis = axis
        self.layers = layers
        for layer in range(layers):
            for part in ("re", "im"):
                self.add_module(f"fsmn_{part}_L{layer + 1}", _Fsmn(channels))

    def forward(self, x: Tensor) -> Tensor:
        # The filter runs along dimension 1. Along time there is only one bin, so the transpose does not copy.
        x = x.transpose(1, self.axis)
        for layer in range(self.layers):
            nets = [cast(_Fsmn, self.get_submodule(f"fsmn_{part}_L{layer + 1}")) for part in ("re", "im")]
            x = self._layer(x, *nets)
        return x.transpose(1, self.axis)

    def _layer(self, x: Tensor, re: _Fsmn, im: _Fsmn) -> Tensor:
        past = min(FSMN_ORDER, x.shape[1]) - 1
        taps_re, taps_im = re.taps(past), im.taps(past)
        return self.operators.memory(
            x,
            torch.cat([re.linear.weight, im.linear.weight]),
            torch.cat([re.linear.bias, im.linear.bias]),
            torch.block_diag(re.project.weight, im.project.weight),  # type: ignore[no-untyped-call]
            torch.cat([taps_re, taps_im, taps_re, -taps_im]),
        )


class _Fsmn(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, (FSMN_ORDER, 1), groups=channels, bias=False)

    def taps(self, past: int) -> Tensor:
        """Return the filter over the last `past` positions and the current one, `(channels, 1, past + 1, 1)`."""
        # An extra 1 in the last tap adds the memory itself, at a third of the traffic of a separate addition.
        weight = self.conv1.weight[:, :, -1 - past :]
        return weight + F.pad(torch.ones_like(weight[:, :, :1]), (0, 0, past, 0))


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation: scales of the channels, from their means over frequency and time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_r = self._layers(channels)
        self.fc_i = self._layers(channels)

    @staticmethod
    def _layers(channels: int) -> nn.Sequential:
        squeezed = channels // SE_REDUCTION
        return nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid())

    def forward(self, means: Tensor) -> Tensor:
        """Compute scales from means, `(…, 2 * channels)` both."""
        mean_re, mean_im = means.chunk(2, dim=-1)
        # As in upstream: real and imaginary parts get separate scales, which is not a complex product.
        scale_re = self.fc_r(mean_re) - self.fc_i(mean_im)
        scale_im = self.fc_r(mean_im) + self.fc_i(mean_re)
        return torch.cat([scale_re, scale_im], dim=-1)


def _complex_weight(re: nn.Module, im: nn.Module, *, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the real convolution that equals the complex one with these two parts."""
    w_re, w_im = cast(Tensor, re.weight), cast(Tensor, im.weight)
    b_re, b_im = cast(Tensor, re.bias), cast(Tensor, im.bias)
    inputs = 0 if transposed else 1
    outputs = 1 - inputs
    to_re = torch.cat([w_re, -w_im], dim=inputs)
    to_im = torch.cat([w_im, w_re], dim=inputs)
    return torch.cat([to_re, to_im], dim=outputs), torch.cat([b_re - b_im, b_re + b_im])


def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """Multiply two complex tensors, both `(batch, 2 * channels, frequency, time)`, real parts first."""
    a_re, a_im = a.chunk(2, dim=1)
    b_re, b_im = b.chunk(2, dim=1)
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=1)
