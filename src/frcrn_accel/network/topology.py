"""The topology of FRCRN: its layers, kernels and shapes. Needs numpy only.

FRCRN (frequency recurrent convolutional recurrent network) denoises the STFT of noisy speech. It multiplies the
spectrum by a complex mask, an estimate of the cIRM (complex ideal ratio mask), which would turn the noisy spectrum
into the clean one. One or more U-Nets in cascade make the mask. A U-Net has these layers, all on complex tensors:

- `encoders`, `decoders`: convolutions and transposed convolutions with skip connections between them.
- `fsmn_enc`, `fsmn_dec`: FSMN along frequency (feedforward sequential memory network: a dense layer, a projection and
  a learnt FIR filter over the last 20 bins). This is the frequency recurrence of the name.
- `fsmn`: two FSMN layers along time, at the bottleneck.
- `se_layers_enc`, `se_layers_dec`: squeeze-and-excitation, which scales each channel by a function of the channels'
  means over frequency and time.

Source: S. Zhao, B. Ma, K. N. Watcharasupat, W.-S. Gan, "FRCRN: Boosting Feature Representation Using Frequency
Recurrence for Monaural Speech Enhancement", ICASSP 2022, and the configuration of the released 16 kHz model
(U-Net of depth 14).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AVERAGING_INPUT",
    "BN_EPSILON",
    "DECODER_KERNELS",
    "ENCODER_KERNELS",
    "FRAME_SAMPLES",
    "FSMN_ORDER",
    "HOP_SAMPLES",
    "LEAKY_SLOPE",
    "LOOKAHEAD_FRAMES",
    "SAMPLE_RATE_HZ",
    "SE_LAYERS",
    "STAGES",
    "STFT_BINS",
    "Config",
    "config_of",
    "layer_group",
    "layer_groups",
    "parameter_shapes",
    "required_config",
    "stft_kernel",
    "stft_synthesis_scale",
    "stft_window",
]

SAMPLE_RATE_HZ = 16_000
FRAME_SAMPLES = 640  # 40 ms, also the FFT length
HOP_SAMPLES = 320  # 20 ms
STFT_BINS = FRAME_SAMPLES // 2 + 1

# (frequency, time). Every stage strides 2 along frequency and 1 along time, and pads (0, 1).
ENCODER_KERNELS = ((5, 2),) * 6 + ((2, 2),)
DECODER_KERNELS = ((2, 2),) + ((5, 2),) * 3 + ((6, 2),) + ((5, 2),) * 2
STAGES = len(ENCODER_KERNELS)
FSMN_ORDER = 20
SE_REDUCTION = 8
LEAKY_SLOPE = 0.01
BN_EPSILON = 1e-5
LOOKAHEAD_FRAMES = STAGES  # of each U-Net: one in each decoder stage

# An input of the step of a stream, besides audio and states: see `graph.timeline.Stepwise`.
AVERAGING_INPUT = "averaging"
SE_LAYERS = "se_layers"  # part of the names of squeeze-and-excitation layers and of their states


@dataclass(frozen=True)
class Config:
    """Size of an FRCRN.

    Attributes:
        channels: Complex channels of every layer, a multiple of 8; 128 in the released model.
        unets: U-Nets in cascade; 2 in the released model.
    """

    channels: int = 128
    unets: int = 2

    @property
    def unet_names(self) -> list[str]:
        """Names of the U-Nets in a checkpoint."""
        return [f"unet{i + 1 if i else ''}" for i in range(self.unets)]


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the network uses, by its released key name.

    >>> from frcrn_accel.network.topology import Config, parameter_shapes
    >>> parameter_shapes(Config(channels=32, unets=1))["unet.fsmn.fsmn_re_L1.linear.weight"]
    (32, 32)
    """
    c = config.channels
    shapes: dict[str, tuple[int, ...]] = {}

    def fsmn(name: str) -> None:
        shapes[f"{name}.linear.weight"] = (c, c)
        shapes[f"{name}.linear.bias"] = (c,)
        shapes[f"{name}.project.weight"] = (c, c)
        shapes[f"{name}.conv1.weight"] = (c, 1, FSMN_ORDER, 1)

    def convolution(name: str, shape: tuple[int, ...], outputs: int) -> None:
        for part in ("re", "im"):
            shapes[f"{name}_{part}.weight"] = shape
            shapes[f"{name}_{part}.bias"] = (outputs,)

    def batch_norm(name: str, outputs: int) -> None:
        for part in ("re", "im"):
            for tensor in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{name}.bn_{part}.{tensor}"] = (outputs,)

    def squeeze_excitation(name: str) -> None:
        for part in ("r", "i"):
            shapes[f"{name}.fc_{part}.0.weight"] = (c // SE_REDUCTION, c)
            shapes[f"{name}.fc_{part}.0.bias"] = (c // SE_REDUCTION,)
            shapes[f"{name}.fc_{part}.2.weight"] = (c, c // SE_REDUCTION)
            shapes[f"{name}.fc_{part}.2.bias"] = (c,)

    for unet in config.unet_names:
        for i, kernel in enumerate(ENCODER_KERNELS):
            if i > 0:
                for part in ("re", "im"):
                    fsmn(f"{unet}.fsmn_enc.{i}.fsmn_{part}_L1")
            convolution(f"{unet}.encoders.{i}.conv.conv", (c, c if i else 1, *kernel), c)
            batch_norm(f"{unet}.encoders.{i}.bn", c)
            if i < STAGES - 1:  # the deepest stage has no skip connection for it to scale
                squeeze_excitation(f"{unet}.se_layers_enc.{i}")
        for layer in (1, 2):
            for part in ("re", "im"):
                fsmn(f"{unet}.fsmn.fsmn_{part}_L{layer}")
        for i, kernel in enumerate(DECODER_KERNELS):
            last = i == STAGES - 1
            # After the first stage the input is the previous stage and the skip connection, concatenated.
            convolution(
                f"{unet}.decoders.{i}.transconv.tconv",
                (2 * c if i else c, 1 if last else c, *kernel),
                1 if last else c,
            )
            batch_norm(f"{unet}.decoders.{i}.bn", 1 if last else c)
            if not last:
                for part in ("re", "im"):
                    fsmn(f"{unet}.fsmn_dec.{i}.fsmn_{part}_L1")
            if i < STAGES - 2:
                squeeze_excitation(f"{unet}.se_layers_dec.{i}")
        convolution(f"{unet}.linear.conv", (1, 1, 1, 1), 1)
    return shapes


def config_of(weights: Mapping[str, Any]) -> Config | None:
    """Return the size of the network in a state dict; None if it is not an FRCRN."""
    first = weights.get("unet.encoders.0.conv.conv_re.weight")
    if first is None or first.ndim != 4 or first.shape[0] == 0 or first.shape[0] % SE_REDUCTION:
        return None
    unets = 1
    while any(key.startswith(f"unet{unets + 1}.") for key in weights):
        unets += 1
    return Config(first.shape[0], unets)


def required_config(weights: Mapping[str, Any]) -> Config:
    """Return the size of the network that has these weights.

    Raises:
        ValueError: These are not the weights of an FRCRN.
    """
    config = config_of(weights)
    if config is None:
        raise ValueError("these are not the weights of an FRCRN")
    return config


def layer_group(name: str) -> str:
    """Return the layer that a parameter or a node of the graph belongs to.

    >>> from frcrn_accel.network.topology import layer_group
    >>> layer_group("unet.encoders.1.bn.bn_re.bias"), layer_group("unet.fsmn.fsmn_re_L1.linear.bias")
    ('unet.encoders.1', 'unet.fsmn')

    Args:
        name: A key of `parameter_shapes`, or a name that starts like one.
    """
    parts = name.split(".")
    return ".".join(parts[: 3 if len(parts) > 2 and parts[2].isdecimal() else 2])


def layer_groups(config: Config) -> tuple[str, ...]:
    """Return all layers with parameters, in the order of each U-Net."""
    return tuple(dict.fromkeys(layer_group(key) for key in parameter_shapes(config)))


def stft_window() -> NDArray[np.float64]:
    """Return the analysis and synthesis window, the square root of a periodic Hann window, `(640,)`."""
    phase = 2 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES
    return np.sqrt(0.5 - 0.5 * np.cos(phase))


def stft_kernel() -> NDArray[np.float32]:
    """Return the windowed Fourier basis, `(642, 640)`: real parts of the 321 bins, then imaginary parts.

    Scaled by `stft_synthesis_scale` and transposed it is the inverse transform: the overlap-added frames, divided by
    the overlap-added squared windows, are the signal.
    """
    basis = np.fft.rfft(np.eye(FRAME_SAMPLES))
    kernel = np.concatenate([basis.real, basis.imag], axis=1).T * stft_window()
    return kernel.astype(np.float32)


def stft_synthesis_scale() -> NDArray[np.float32]:
    """Return the factor of each row of `stft_kernel` in the inverse transform, `(642,)`."""
    scale = np.full((2, STFT_BINS), 2 / FRAME_SAMPLES)
    scale[:, [0, -1]] = 1 / FRAME_SAMPLES  # the two bins without a negative frequency
    return scale.reshape(-1).astype(np.float32)
