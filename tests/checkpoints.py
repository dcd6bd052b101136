"""Checkpoints as `torch.save` writes them; without PyTorch, a test that needs one is skipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch

__all__ = ["save_checkpoint", "state_of"]


def state_of(weights: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return weights as the state dict of a module."""
    torch = pytest.importorskip("torch")
    return {key: torch.tensor(value) for key, value in weights.items()}


def save_checkpoint(weights: Mapping[str, np.ndarray], path: Path) -> Path:
    """Write weights as a checkpoint; return its path."""
    torch = pytest.importorskip("torch")
    torch.save(state_of(weights), path)
    return path
