"""Means of scores with their 95 % intervals, as the reports of benchmarks hold and print them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcrn_accel.quality import bootstrap_interval


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean with its 95 % bootstrap interval."""
    return {"mean": float(np.mean(values)), "interval": list(bootstrap_interval(np.asarray(values)))}


def with_interval(value: Mapping[str, Any], digits: int = 2, sign: str = "") -> str:
    """Write a mean with its interval."""
    low, high = value["interval"]
    return f"{value['mean']:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
