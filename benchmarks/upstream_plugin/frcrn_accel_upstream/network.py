"""Load and build upstream's own FRCRN module, from the package `clearvoice`.

The package's `__init__` imports far more than is needed, so its folder `models` goes on the path and `frcrn_se` is
imported from there. The width of 128 is hard-coded in `UNet.set_size` and the constructors of the FSMN; both are
overridden here to build networks of other widths.

Importing this file imports torch.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.metadata import distribution
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["build", "load_modules", "run"]


def load_modules() -> Any:
    """Import upstream's modules `frcrn`, `unet` and `complex_nn`.

    Raises:
        ImportError: `clearvoice` or SciPy is not installed.
    """
    folder = str(distribution("clearvoice").locate_file("clearvoice/models"))
    if folder not in sys.path:
        sys.path.append(folder)
    # Upstream imports librosa for a self-test that is never called. A real one stays.
    stand_in = types.ModuleType("librosa")
    is_stand_in = sys.modules.setdefault("librosa", stand_in) is stand_in
    try:
        modules = {name: importlib.import_module(f"frcrn_se.{name}") for name in ("frcrn", "unet", "complex_nn")}
    finally:
        if is_stand_in:
            del sys.modules["librosa"]
    return types.SimpleNamespace(**modules)


def build(channels: int, seed: int = 0) -> Any:
    """Build upstream's network in inference mode, with seeded random weights and batch norm statistics.

    Args:
        channels: Complex channels; upstream has 128.
        seed: Seed of the weights.

    Raises:
        ImportError: See `load_modules`.
    """
    upstream = load_modules()
    set_size = upstream.unet.UNet.set_size

    def set_narrow_size(self: Any, *args: Any, **kwargs: Any) -> None:
        set_size(self, *args, **kwargs)
        self.enc_channels = [1] + [channels] * 7
        self.dec_channels = [channels // 2] + [channels] * 6 + [1]

    def fsmn(layers: int) -> Any:
        def init(self: Any, *_: int) -> None:
            torch.nn.Module.__init__(self)
            for layer in range(1, layers + 1):
                for part in ("re", "im"):
                    net = upstream.complex_nn.UniDeepFsmn(channels, channels, 20, channels)
                    setattr(self, f"fsmn_{part}_L{layer}", net)

        return init

    torch.manual_seed(seed)
    with (
        mock.patch.object(upstream.unet.UNet, "set_size", set_narrow_size),
        mock.patch.object(upstream.complex_nn.ComplexUniDeepFsmn, "__init__", fsmn(2)),
        mock.patch.object(upstream.complex_nn.ComplexUniDeepFsmn_L1, "__init__", fsmn(1)),
    ):
        network = upstream.frcrn.DCCRN(
            complex=True,
            model_complexity=45,
            model_depth=14,
            log_amp=False,
            padding_mode="zeros",
            win_len=640,
            win_inc=320,
            fft_len=640,
            win_type="hanning",
        )
    for name, tensor in [*network.named_buffers(), *network.named_parameters()]:
        kind = name.rsplit(".", 1)[-1]
        if kind == "running_mean" or (".bn_" in name and kind == "bias"):
            tensor.data = 0.1 * torch.randn(tensor.shape)
        elif kind == "running_var":
            tensor.data = 0.5 + 1.5 * torch.rand(tensor.shape)
        elif ".bn_" in name and kind == "weight":
            tensor.data = 0.75 + 0.5 * torch.rand(tensor.shape)
    return network.eval()


def run(network: Any, audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """Denoise `(batch, samples)` with upstream's network; return `(batch, samples - samples % 320)`."""
    with torch.inference_mode():
        denoised: NDArray[np.float32] = network.inference_batch(torch.from_numpy(audio)).view(len(audio), -1).numpy()
    return denoised
