"""Count the arithmetic of the network from its shape."""

from __future__ import annotations

from collections import Counter

from frcrn_accel.network.topology import (
    DECODER_KERNELS,
    ENCODER_KERNELS,
    FRAME_SAMPLES,
    FSMN_ORDER,
    HOP_SAMPLES,
    SE_REDUCTION,
    STAGES,
    STFT_BINS,
    Config,
)

PRODUCTS = 4  # real multiplications in a complex one


def multiply_accumulates(config: Config, samples: int) -> dict[str, int]:
    """Return the real multiply-accumulates of one window, by kind of layer, for the network as it is defined.

    Some graph forms need fewer (Gauss's product has three real products instead of four). Only products with weights
    are counted; work per value (activations, the mask) is not.

    Args:
        config: Size of the network.
        samples: Length of the window.
    """
    c = config.channels
    frames = (samples - FRAME_SAMPLES) // HOP_SAMPLES + 1
    counts: Counter[str] = Counter()
    counts["transforms"] = 2 * 2 * STFT_BINS * FRAME_SAMPLES * frames

    def fsmn(height: int) -> None:
        counts["FSMN"] += PRODUCTS * height * frames * c * (2 * c + FSMN_ORDER)

    def squeeze_excitation() -> None:
        counts["squeeze-excitation"] += PRODUCTS * 2 * c * (c // SE_REDUCTION)

    for _ in range(config.unets):
        height = STFT_BINS
        for i, (taps, times) in enumerate(ENCODER_KERNELS):
            if i:
                fsmn(height)
            height = (height - taps) // 2 + 1
            frames += 1  # a frame of zeros before and after; each output takes two frames
            inputs, kind = (c, "convolutions") if i else (1, "first and last layers")
            counts[kind] += PRODUCTS * inputs * c * taps * times * height * frames
            if i < STAGES - 1:
                squeeze_excitation()
        for _ in range(2):
            fsmn(height)  # along time
        for i, (taps, times) in enumerate(DECODER_KERNELS):
            is_last = i == STAGES - 1
            inputs, outputs = c if i == 0 else 2 * c, 1 if is_last else c
            frames -= 1
            kind = "first and last layers" if is_last else "convolutions"
            counts[kind] += PRODUCTS * inputs * outputs * taps * times * height * frames
            height = (height - 1) * 2 + taps
            if not is_last:
                fsmn(height)
            if i < STAGES - 2:
                squeeze_excitation()
        counts["first and last layers"] += PRODUCTS * STFT_BINS * frames  # the 1x1 convolution at the end
        assert height == STFT_BINS
    return dict(counts)
