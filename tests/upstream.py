"""Upstream's own FRCRN code, as an oracle. It is part of benchmarks/upstream_plugin, which has to be installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("scipy")

MISSING = "upstream's code is not installed: pip install --no-deps clearvoice==0.1.2 ./benchmarks/upstream_plugin"


def build(channels: int, seed: int = 0) -> Any:
    """Build upstream's network with seeded random weights, for inference."""
    try:
        from frcrn_accel_upstream import network

        return network.build(channels, seed)
    except ImportError as error:
        pytest.skip(f"{MISSING} ({error})")


def run(network: Any, audio: np.ndarray) -> np.ndarray:
    """Denoise `(batch, samples)` with upstream's network; return `(batch, samples - samples % 320)`."""
    from frcrn_accel_upstream.network import run

    return run(network, audio)
