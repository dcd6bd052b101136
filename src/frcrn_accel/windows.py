"""Where a long signal is cut and how the pieces are joined: index arithmetic only, in samples of the model rate.

The rule, for every length:

1. A signal that fits into one window is one window: a whole pass.
2. A longer one is cut into as few windows as can be, all of one length (so that an engine meets one shape per
   signal and the model's squeeze-and-excitation layers average over equal spans), spread evenly from the first
   sample to the last, on frame boundaries. Neighbours overlap by `past + fade + future`. The windows are only as
   long as that takes, so the work grows with the length of the signal and never in steps.
3. Neighbours are joined by a linear cross-fade that ends `future` before the earlier window's end, so that the
   earlier window still has the look-ahead it needs there and the later one has all the remaining overlap as its
   past. The weights of all windows add up to one at every sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "Windowing"]

FRAME_S = 0.04


@dataclass(frozen=True)
class Window:
    """One stretch of the signal that goes through the model in one piece.

    Attributes:
        start: First sample.
        stop: One past the last sample.
        fade_in: (first, one past last) sample over which the weight rises to 1; empty for the first window.
        fade_out: The same where the weight falls to 0; empty for the last window.
    """

    start: int
    stop: int
    fade_in: tuple[int, int]
    fade_out: tuple[int, int]

    @property
    def samples(self) -> int:
        """Length of the window."""
        return self.stop - self.start

    def weights(self) -> NDArray[np.float32]:
        """Weight of each sample of the window in the joined signal, shape `(samples,)`."""
        weights = np.ones(self.samples, np.float32)
        rise = _ramp(self.fade_in)
        fall = 1.0 - _ramp(self.fade_out)
        weights[: self.fade_in[0] - self.start] = 0.0
        weights[self.fade_in[0] - self.start : self.fade_in[1] - self.start] = rise
        weights[self.fade_out[0] - self.start : self.fade_out[1] - self.start] = fall
        weights[self.fade_out[1] - self.start :] = 0.0
        return weights


@dataclass(frozen=True)
class Windowing:
    """How long signals are cut.

    The defaults come from measurement on real speech (`docs/long-audio.md`). A longer window is closer to one
    whole pass and takes more memory; time per second of audio hardly changes.

    Attributes:
        window_s: Longest stretch that goes through the model in one piece, seconds.
        past_s: Least context before a window's used part, seconds. The model looks about 1.8 s back.
        future_s: Context after a window's used part, seconds. The model looks 0.28 s ahead.
        fade_s: Length of the cross-fade, seconds.
        fixed: Cut every signal that is longer than a window into windows of just `window_s`, with more overlap than
            it takes: for engines that are tuned for one length.

    Raises:
        ValueError: A context is shorter than an STFT frame, or the window is not at least three overlaps long.
    """

    window_s: float = 20.0
    past_s: float = 2.0
    future_s: float = 0.3
    fade_s: float = 0.5
    fixed: bool = False

    def __post_init__(self) -> None:
        """Check the lengths."""
        # The first and the last hop of a window lie in one STFT frame only and are of no use.
        if not (self.past_s >= FRAME_S and self.future_s >= FRAME_S and self.fade_s >= 0):
            raise ValueError(f"past_s and future_s must be at least {FRAME_S:g} s, and fade_s must not be negative")
        overlap_s = self.past_s + self.fade_s + self.future_s
        # Three overlaps keep the two cross-fades of a window apart even where windows are at their shortest.
        if not self.window_s >= 3 * overlap_s:
            raise ValueError(
                f"window_s must be at least three times the overlap past_s + fade_s + future_s "
                f"({3 * overlap_s:g} s), got {self.window_s:g} s"
            )

    def plan(self, samples: int, sample_rate_hz: int, hop: int) -> Sequence[Window]:
        """Cut a signal.

        Args:
            samples: Length of the signal, a multiple of `hop`.
            sample_rate_hz: Rate at which the lengths in seconds count.
            hop: Frame step in samples: windows start and stop at its multiples.

        Returns:
            The windows in order. They all have the same length, and every sample of the signal has a total
            weight of one.
        """
        if samples <= 0 or samples % hop:
            raise ValueError(f"samples must be a positive multiple of {hop}, got {samples}")
        longest, past, future, fade = (
            round(seconds * sample_rate_hz / hop) * hop
            for seconds in (self.window_s, self.past_s, self.future_s, self.fade_s)
        )
        overlap = past + future + fade
        if samples <= longest:
            return [Window(0, samples, (0, 0), (samples, samples))]
        steps = _ceil_div(samples - longest, longest - overlap)
        size = longest if self.fixed else _ceil_div(samples + steps * overlap, (steps + 1) * hop) * hop
        # Rounded down, no step is longer than size - overlap, so no overlap is shorter than asked for.
        starts = [(samples - size) * i // (steps * hop) * hop for i in range(steps + 1)]
        joins = [(start + size - future - fade, start + size - future) for start in starts[:-1]]
        return [
            Window(start, start + size, fade_in, fade_out)
            for start, fade_in, fade_out in zip(starts, [(0, 0), *joins], [*joins, (samples, samples)], strict=True)
        ]


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _ramp(span: tuple[int, int]) -> NDArray[np.float32]:
    """Rising weights strictly between 0 and 1, one for each sample of the span."""
    samples = span[1] - span[0]
    return ((np.arange(samples, dtype=np.float32) + 0.5) / max(samples, 1)).astype(np.float32)
