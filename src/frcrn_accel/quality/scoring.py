"""Score audio where a metric may not apply: no speech in a clip, or a package that is not installed."""

from __future__ import annotations

import math
from collections.abc import Callable

from frcrn_accel.errors import AudioError, MissingExtraError

__all__ = ["Scorer", "required_score", "score_or_none"]


def score_or_none(score: Callable[[], float]) -> float | None:
    """Compute a score; return None for audio that the metric cannot score.

    >>> import numpy as np
    >>> from frcrn_accel.quality import dnsmos, score_or_none
    >>> score_or_none(lambda: dnsmos(np.zeros(0)).ovrl) is None
    True

    Args:
        score: Computes the score. If it raises `AudioError` or returns a number that is not finite, the audio cannot
            be scored.

    Raises:
        MissingExtraError: The package of the metric is not installed.
    """
    try:
        return required_score(score)
    except AudioError:  # usually no speech
        return None


def required_score(score: Callable[[], float]) -> float:
    """Compute a score.

    Args:
        score: See `score_or_none`.

    Raises:
        AudioError: The metric cannot score the audio; the message says why.
        MissingExtraError: The package of the metric is not installed.
    """
    value = score()
    if not math.isfinite(value):
        raise AudioError("the score is not a number")
    return value


class Scorer:
    """Scores many clips, and skips the metrics whose packages are not installed.

    Attributes:
        notes: Why a metric is skipped, by its name.
    """

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def score(self, metric: str, score: Callable[[], float]) -> float | None:
        """Compute a score; return None if the audio cannot be scored or the metric is skipped.

        Args:
            metric: Name of the metric.
            score: See `score_or_none`.
        """
        if metric in self.notes:
            return None
        try:
            return score_or_none(score)
        except MissingExtraError as error:
            self.notes[metric] = str(error)
            return None
