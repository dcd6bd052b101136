"""Ratios of times that were measured in turns, and whether they say anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frcrn_accel.errors import BenchError

__all__ = ["LEAST_ROUNDS", "Ratio", "median_ranks", "spread_percent", "times_faster"]

CONFIDENCE = 0.95
LEAST_ROUNDS = 6  # with fewer, even the range of all of them holds the median with less than that


@dataclass(frozen=True)
class Ratio:
    """How many times faster one is than another.

    Attributes:
        median: Over the rounds, of the ratio of two times in one round.
        low, high: An interval that holds the true median with 95 %: it may be more of one machine at one time.
    """

    median: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the two differ by more than the noise."""
        return not self.low <= 1 <= self.high


def times_faster(times_s: Sequence[float], baseline_s: Sequence[float]) -> Ratio:
    """Compare two that took turns, round by round: what slows the machine for a while slows both.

    The interval is that of the sign test, between two of the ratios in their order: it supposes nothing about how the
    noise is distributed, and one wild round does not move it.

    Args:
        times_s: Of one, in each round.
        baseline_s: Of the other, in the same rounds.

    Raises:
        BenchError: They have fewer than `LEAST_ROUNDS` rounds.
        ValueError: They have not the same number.
    """
    ratios = sorted(other / own for own, other in zip(times_s, baseline_s, strict=True))
    low, high = median_ranks(len(ratios))
    return Ratio(float(np.median(ratios)), ratios[low], ratios[high])


def median_ranks(count: int) -> tuple[int, int]:
    """Places, counted from 0, of the two of `count` sorted values that the median lies between with 95 %.

    Source: W. J. Conover, "Practical Nonparametric Statistics", on the confidence interval of a quantile.

    Raises:
        BenchError: There are fewer than `LEAST_ROUNDS`.
    """
    if count < LEAST_ROUNDS:
        raise BenchError(f"{count} rounds are too few to tell anything from noise: take at least {LEAST_ROUNDS}")
    missed, rank = 0.0, -1
    while missed + math.comb(count, rank + 1) / 2**count <= (1 - CONFIDENCE) / 2:
        rank += 1
        missed += math.comb(count, rank) / 2**count
    return rank, count - 1 - rank


def spread_percent(times_s: Sequence[float]) -> float:
    """Noise of one that was measured again and again: the width of the middle half of the times, % of the median."""
    low, middle, high = np.quantile(times_s, [0.25, 0.5, 0.75])
    return float(100 * (high - low) / middle)
