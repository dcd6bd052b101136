"""Upstream's own FRCRN code, as an oracle: the `clearvoice` package, of which only one folder is loaded.

The package's `__init__` imports half the world, so its folder `models` goes on the path and `frcrn_se` is imported
from there. Its width of 128 is written into `UNet.set_size` and the constructors of the FSMN; both are overridden
here to make networks of another width.
"""

from __future__ import annotations

import importlib
import sys
import types
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from unittest import mock

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")


def load_modules() -> Any:
    """Upstream's modules `frcrn`, `unet` and `complex_nn`."""
    try:
        folder = str(distribution("clearvoice").locate_file("clearvoice/models"))
    except PackageNotFoundError:
        pytest.skip("upstream's code is not installed: pip install --no-deps clearvoice==0.1.2")
    if folder not in sys.path:
        sys.path.append(folder)
    names = ("frcrn", "unet", "complex_nn")
    with pytest.MonkeyPatch.context() as patch:
        # Imported for a self-test that is never called. DNSMOS, which other tests use, wants the real one.
        patch.setitem(sys.modules, "librosa", sys.modules.get("librosa", types.ModuleType("librosa")))
        return types.SimpleNamespace(**{name: importlib.import_module(f"frcrn_se.{name}") for name in names})


def build(channels: int, seed: int = 0) -> Any:
    """Upstream's network with seeded random weights and batch norm statistics, for inference."""
    upstream = load_modules()
    set_size = upstream.unet.UNet.set_size

    def narrower(self: Any, *args: Any, **kwargs: Any) -> None:
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
        mock.patch.object(upstream.unet.UNet, "set_size", narrower),
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


def run(network: Any, audio: Any) -> Any:
    """Upstream's result for `(batch, samples)`: `(batch, samples - samples % 320)`."""
    with torch.inference_mode():
        return network.inference_batch(torch.from_numpy(audio)).view(len(audio), -1).numpy()
