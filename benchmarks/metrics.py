"""Measures of quality used by the benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 16_000


def si_sdr_db(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Scale-invariant signal-to-distortion ratio (Le Roux et al., ICASSP 2019), both `(samples,)`."""
    reference = reference.astype(np.float64) - np.mean(reference)
    estimate = estimate.astype(np.float64) - np.mean(estimate)
    target = np.dot(estimate, reference) / np.dot(reference, reference) * reference
    return float(10 * np.log10(np.sum(target**2) / np.sum((estimate - target) ** 2)))


def pesq_wb(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Wide-band PESQ (ITU-T P.862.2)."""
    from pesq import pesq

    return float(pesq(SAMPLE_RATE_HZ, reference, estimate, "wb"))


def stoi(reference: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Short-time objective intelligibility (Taal et al., 2011)."""
    from pystoi import stoi

    return float(stoi(reference, estimate, SAMPLE_RATE_HZ))


def bootstrap_interval(values: NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean."""
    rng = np.random.default_rng(seed)
    means = rng.choice(values, (10_000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
