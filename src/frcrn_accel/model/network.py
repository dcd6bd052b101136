"""FRCRN in PyTorch: the reference for every engine, and the module that training trains.

Complex tensors are real ones with twice the channels, `(batch, 2 * channels, frequency, time)`, real parts first.
A complex convolution is then one real convolution with the weight `[[Wr, -Wi], [Wi, Wr]]`, which gives the same
numbers as four of them and takes a good part of the time. Modules and parameters carry the released key names.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frcrn_accel.model.checkpoint import Weights
from frcrn_accel.model.topology import (
    BN_EPSILON,
    DECODER_KERNELS,
    ENCODER_KERNELS,
    FSMN_ORDER,
    HOP_SAMPLES,
    LEAKY_SLOPE,
    SE_REDUCTION,
    STAGES,
    STFT_BINS,
    WINDOW_SAMPLES,
    Config,
    config_of,
    stft_kernel,
    stft_synthesis_scale,
    stft_window,
)

__all__ = ["FRCRN", "build_network", "complex_product"]


def build_network(weights: Weights) -> FRCRN:
    """The network with these weights, ready to run.

    Args:
        weights: As `checkpoint.load_checkpoint` gives them.
    """
    config = config_of(weights)
    if config is None:
        raise ValueError("weights hold no FRCRN")
    network = FRCRN(config)
    network.load_state_dict({key: torch.tensor(value) for key, value in weights.items()}, strict=False)
    return network.eval()


class FRCRN(nn.Module):
    """Waveform in, waveform out, 16 kHz.

    Args:
        config: Size of the network.
    """

    kernel: Tensor
    synthesis_scale: Tensor
    squared_window: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("kernel", torch.tensor(stft_kernel())[:, None], persistent=False)
        self.register_buffer(
            "synthesis_scale", torch.tensor(stft_synthesis_scale()).view(2, STFT_BINS, 1), persistent=False
        )
        squared_window = torch.tensor(stft_window() ** 2, dtype=torch.float32).view(1, -1, 1)
        self.register_buffer("squared_window", squared_window, persistent=False)
        for name in config.unet_names:
            self.add_module(name, _UNet(config.channels))

    def forward(self, audio: Tensor) -> Tensor:
        """Denoise.

        Args:
            audio: `(batch, samples)`, at least 640 samples.

        Returns:
            The samples that whole frames cover: `(batch, samples - samples % 320)`.
        """
        spectrum = self.analyse(audio)
        return self.synthesise(complex_product(spectrum, self.mask(spectrum)))

    def analyse(self, audio: Tensor) -> Tensor:
        """STFT: `(batch, samples)` to `(batch, 2, 321, frames)`."""
        spectrum = F.conv1d(audio[:, None], self.kernel, stride=HOP_SAMPLES)
        return spectrum.view(audio.shape[0], 2, STFT_BINS, -1)

    def mask(self, spectrum: Tensor) -> Tensor:
        """Complex mask of a spectrum, both `(batch, 2, 321, frames)`.

        Each U-Net is fed the raw output of the one before it; the mask is the sum of their tanh.
        """
        x = spectrum
        mask = torch.zeros_like(spectrum)
        for name in self.config.unet_names:
            x = self.get_submodule(name)(x)
            mask = mask + torch.tanh(x)
        return mask

    def synthesise(self, spectrum: Tensor) -> Tensor:
        """Inverse STFT: `(batch, 2, 321, frames)` to `(batch, 320 * (frames + 1))`."""
        scaled = (spectrum * self.synthesis_scale).flatten(1, 2)
        audio = F.conv_transpose1d(scaled, self.kernel, stride=HOP_SAMPLES)
        windows = self.squared_window.expand(1, -1, spectrum.shape[-1])
        output_size = (1, audio.shape[-1])
        # The 1e-8 is upstream's; without it the very first sample, where the window is 0, would be 0 / 0.
        overlap = F.fold(windows, output_size, (1, WINDOW_SAMPLES), stride=(1, HOP_SAMPLES)).view(1, 1, -1)
        return (audio / (overlap + 1e-8))[:, 0]


class _UNet(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.encoders = nn.ModuleList(_Encoder(c if i else 1, c, kernel) for i, kernel in enumerate(ENCODER_KERNELS))
        # nn.Identity keeps the released numbering where a stage has no such layer.
        self.fsmn_enc = nn.ModuleList(_ComplexFsmn(c, axis=2) if i else nn.Identity() for i in range(STAGES))
        self.se_layers_enc = nn.ModuleList(_SqueezeExcitation(c) for _ in range(STAGES - 1))
        self.fsmn = _ComplexFsmn(c, axis=3, layers=2)
        self.decoders = nn.ModuleList(
            _Decoder(2 * c if i else c, 1 if i == STAGES - 1 else c, kernel)
            for i, kernel in enumerate(DECODER_KERNELS)
        )
        self.fsmn_dec = nn.ModuleList(_ComplexFsmn(c, axis=2) for _ in range(STAGES - 1))
        self.se_layers_dec = nn.ModuleList(_SqueezeExcitation(c) for _ in range(STAGES - 2))
        self.linear = _PointwiseComplex()

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, (fsmn, encoder) in enumerate(zip(self.fsmn_enc, self.encoders, strict=True)):
            x = encoder(fsmn(x))
            if i < STAGES - 1:
                # The scaled output goes into the skip connection only; the next stage gets the plain one.
                skips.append(self.se_layers_enc[i](x))
        x = self.fsmn(x)
        for i, decoder in enumerate(self.decoders):
            if i > 0:
                x = _concat_complex(x, skips.pop())
            x = decoder(x)
            if i < STAGES - 1:
                x = self.fsmn_dec[i](x)
            if i < STAGES - 2:
                x = self.se_layers_dec[i](x)
        return cast(Tensor, self.linear(x))


class _Encoder(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.ModuleDict(
            {f"conv_{part}": nn.Conv2d(inputs, outputs, kernel, (2, 1), (0, 1)) for part in ("re", "im")}
        )
        self.bn = _ComplexBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        re, im = self.conv["conv_re"], self.conv["conv_im"]
        y = F.conv2d(x, *_complex_weight(re, im, outputs_first=True), stride=(2, 1), padding=(0, 1))
        return F.leaky_relu(self.bn(y), LEAKY_SLOPE)


class _Decoder(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.transconv = nn.ModuleDict(
            {f"tconv_{part}": nn.ConvTranspose2d(inputs, outputs, kernel, (2, 1), (0, 1)) for part in ("re", "im")}
        )
        self.bn = _ComplexBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        re, im = self.transconv["tconv_re"], self.transconv["tconv_im"]
        y = F.conv_transpose2d(x, *_complex_weight(re, im, outputs_first=False), stride=(2, 1), padding=(0, 1))
        return F.leaky_relu(self.bn(y), LEAKY_SLOPE)


class _PointwiseComplex(nn.Module):
    """The 1x1 convolution on one complex channel that ends a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_re = nn.Conv2d(1, 1, 1)
        self.conv_im = nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *_complex_weight(self.conv_re, self.conv_im, outputs_first=True))


class _ComplexBatchNorm(nn.Module):
    """Real and imaginary parts normalised apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn_re = nn.BatchNorm2d(channels, BN_EPSILON)
        self.bn_im = nn.BatchNorm2d(channels, BN_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        re, im = x.chunk(2, dim=1)
        return torch.cat([self.bn_re(re), self.bn_im(im)], dim=1)


class _ComplexFsmn(nn.Module):
    """Complex feed-forward sequential memory: a learnt filter over the last 20 steps of one axis.

    Args:
        channels: Complex channels.
        axis: 2, the memory runs along frequency, lower bins first; 3, along time, past frames only.
        layers: Layers in a row.
    """

    def __init__(self, channels: int, axis: int, layers: int = 1) -> None:
        super().__init__()
        self.layers = layers
        for layer in range(layers):
            for part in ("re", "im"):
                self.add_module(f"fsmn_{part}_L{layer + 1}", _Fsmn(channels, axis))

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(self.layers):
            re_net = self.get_submodule(f"fsmn_re_L{layer + 1}")
            im_net = self.get_submodule(f"fsmn_im_L{layer + 1}")
            re, im = x.chunk(2, dim=1)
            x = torch.cat([re_net(re) - im_net(im), re_net(im) + im_net(re)], dim=1)
        return x


class _Fsmn(nn.Module):
    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.linear = nn.Linear(channels, channels)
        self.project = nn.Linear(channels, channels, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, (FSMN_ORDER, 1), groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(F.conv2d(x, self.linear.weight[..., None, None], self.linear.bias))
        memory = F.conv2d(hidden, self.project.weight[..., None, None])
        past = FSMN_ORDER - 1
        # The memory itself is added by one more in the filter's last tap: a third of the traffic of adding it apart.
        taps = self.conv1.weight + F.pad(torch.ones_like(self.conv1.weight[:, :, :1]), (0, 0, past, 0))
        if self.axis == 2:
            return x + F.conv2d(F.pad(memory, (0, 0, past, 0)), taps, groups=x.shape[1])
        return x + F.conv2d(F.pad(memory, (past, 0)), taps.transpose(2, 3), groups=x.shape[1])


class _SqueezeExcitation(nn.Module):
    """Scales each channel by a function of the means over all frequencies and all of the time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc_r = self._layers(channels)
        self.fc_i = self._layers(channels)

    @staticmethod
    def _layers(channels: int) -> nn.Sequential:
        squeezed = channels // SE_REDUCTION
        return nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        mean_re, mean_im = x.mean(dim=(2, 3)).chunk(2, dim=1)
        # Upstream's: re and im are scaled apart, this is no complex product.
        scale_re = self.fc_r(mean_re) - self.fc_i(mean_im)
        scale_im = self.fc_r(mean_im) + self.fc_i(mean_re)
        return x * torch.cat([scale_re, scale_im], dim=1)[..., None, None]


def _complex_weight(re: nn.Module, im: nn.Module, *, outputs_first: bool) -> tuple[Tensor, Tensor]:
    """Weight and bias of the real convolution that is the complex one of these two."""
    w_re, w_im = cast(Tensor, re.weight), cast(Tensor, im.weight)
    b_re, b_im = cast(Tensor, re.bias), cast(Tensor, im.bias)
    inputs = 1 if outputs_first else 0
    outputs = 1 - inputs
    to_re = torch.cat([w_re, -w_im], dim=inputs)
    to_im = torch.cat([w_im, w_re], dim=inputs)
    return torch.cat([to_re, to_im], dim=outputs), torch.cat([b_re - b_im, b_re + b_im])


def _concat_complex(a: Tensor, b: Tensor) -> Tensor:
    a_re, a_im = a.chunk(2, dim=1)
    b_re, b_im = b.chunk(2, dim=1)
    return torch.cat([a_re, b_re, a_im, b_im], dim=1)


def complex_product(a: Tensor, b: Tensor) -> Tensor:
    """Product of two complex tensors, both `(batch, 2 * channels, frequency, time)`, real parts first."""
    a_re, a_im = a.chunk(2, dim=1)
    b_re, b_im = b.chunk(2, dim=1)
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=1)
