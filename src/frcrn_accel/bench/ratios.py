"""Compare times that were measured in turns, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frcrn_accel.errors import BenchError

__all__ = ["LEAST_ROUNDS", "Ratio", "check_rounds", "median_ranks", "spread_percent", "times_faster"]

CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # with fewer, even the full range contains the median with less confidence


@dataclass(frozen=True)
class Ratio:
    """How many times faster one configuration is than another.

    Attributes:
        median: Median over the rounds of the ratio of the two times of a round.
        low, high: Confidence interval of the median, 95 %, for this machine at this time.
    """

    median: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the difference is larger than the noise."""
        return not self.low <= 1 <= self.high


def times_faster(times_s: Sequence[float], baseline_s: Sequence[float]) -> Ratio:
    """Compare two configurations that took turns, round by round, so that disturbances of the machine affect both.

    The interval is that of the sign test, between two of the sorted ratios. It assumes nothing about the distribution
    of the noise, and an outlier does not move it.

    Args:
        times_s: Time of the first in each round.
        baseline_s: Time of the second in the same rounds.

    Raises:
        BenchError: There are fewer than `LEAST_ROUNDS` rounds.
        ValueError: The numbers of rounds differ.
    """
    ratios = sorted(other / own for own, other in zip(times_s, baseline_s, strict=True))
    low, high = median_ranks(len(ratios))
    return Ratio(float(np.median(ratios)), ratios[low], ratios[high])


def median_ranks(count: int) -> tuple[int, int]:
    """Return the indices of the two of `count` sorted values between which the median lies with 95 % confidence.

    Source: W. J. Conover, "Practical Nonparametric Statistics", on the confidence interval of a quantile.

    Raises:
        BenchError: `count` is less than `LEAST_ROUNDS`.
    """
    check_rounds(count)
    missed, rank = 0.0, -1
    while missed + math.comb(count, rank + 1) / 2**count <= (1 - CONFIDENCE) / 2:
        rank += 1
        missed += math.comb(count, rank) / 2**count
    return rank, count - 1 - rank


def check_rounds(rounds: int) -> None:
    """Check that there are enough rounds for a confidence interval.

    Raises:
        BenchError: There are fewer than `LEAST_ROUNDS`.
    """
    if rounds < LEAST_ROUNDS:
        raise BenchError(f"{rounds} rounds are too few for a confidence interval: use at least {LEAST_ROUNDS}")


def spread_percent(times_s: Sequence[float]) -> float:
    """Return the noise of repeated measurements: the interquartile range in percent of the median."""
    low, middle, high = np.quantile(times_s, [0.25, 0.5, 0.75])
    return float(100 * (high - low) / middle)
