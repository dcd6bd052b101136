"""Signals and measures for the tests of what is written in Python and in JavaScript."""

from __future__ import annotations

import numpy as np

__all__ = ["difference", "with_bang"]


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, as a share of the peak."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def with_bang(audio: np.ndarray, first: int, samples: int, level: float) -> np.ndarray:
    """Return a signal with a bang in it."""
    banged = audio.copy()
    banged[first : first + samples] += level * np.random.default_rng(1).standard_normal(samples)
    return banged
