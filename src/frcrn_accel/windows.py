"""Cut long signals into windows and join the results: index arithmetic only, in samples at the model's rate.

The rule, for every length:

1. A signal that fits into one window is denoised in one window, a whole pass.
2. A longer signal is cut into as few windows as possible. They all have the same length, so that an engine gets one
   shape per signal and the model's squeeze-and-excitation layers average over equal spans. They are spread evenly
   from the first sample to the last, and start at multiples of the hop. Neighbours overlap by at least
   `past + fade + future`. Windows are no longer than necessary, so the work grows smoothly with the length.
3. Neighbours are joined by a linear cross-fade that ends `future` before the end of the earlier window. There the
   earlier window still has the look-ahead it needs, and the later one has the rest of the overlap as its past. The
   weights of all windows add up to one at every sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Window", "Windowing"]

FRAME_S = 0.04


@dataclass(frozen=True)
class Window:
    """A piece of the signal that the model processes at once.

    Attributes:
        start: First sample.
        stop: One past the last sample.
        fade_in: Samples (first, one past the last) over which the weight rises to 1; empty for the first window.
        fade_out: Samples over which the weight falls to 0; empty for the last window.
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
        """Return the weight of each sample in the joined signal, shape `(samples,)`."""
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
    """How to cut long signals into windows.

    The defaults come from measurements on real speech (`docs/long-audio.md`). Longer windows are closer to a whole
    pass and take more memory; the time per second of audio hardly changes.

    >>> len(Windowing().plan(60 * 16_000, 16_000, 320))
    4

    Attributes:
        window_s: Maximum length of a window, s.
        past_s: Minimum context before the part of a window that is used, s. The model looks back about 1.8 s.
        future_s: Context after the part of a window that is used, s. The model looks ahead 0.28 s.
        fade_s: Length of the cross-fade, s.
        fixed: Make every window of a long signal exactly `window_s` long, for engines that are tuned for one length.
            Windows then overlap by more than necessary.

    Raises:
        ValueError: `past_s` or `future_s` is shorter than an STFT frame, `fade_s` is negative, or `window_s` is
            shorter than three overlaps or infinite.
    """

    window_s: float = 20.0
    past_s: float = 2.0
    future_s: float = 0.3
    fade_s: float = 0.5
    fixed: bool = False

    def __post_init__(self) -> None:
        """Check the lengths."""
        # The first and the last hop of a window are part of a single STFT frame and are not reliable.
        if not (self.past_s >= FRAME_S and self.future_s >= FRAME_S and self.fade_s >= 0):
            raise ValueError(f"past_s and future_s must be at least {FRAME_S:g} s, and fade_s must not be negative")
        overlap_s = self.past_s + self.fade_s + self.future_s
        # With three overlaps the two cross-fades of a window stay apart, even in the shortest windows.
        if not self.window_s >= 3 * overlap_s:
            raise ValueError(
                f"window_s must be at least three times the overlap past_s + fade_s + future_s "
                f"({3 * overlap_s:g} s), got {self.window_s:g} s"
            )
        if math.isinf(self.window_s):
            raise ValueError("window_s must be finite")

    def plan(self, samples: int, sample_rate_hz: int, hop: int) -> Sequence[Window]:
        """Cut a signal into windows.

        Args:
            samples: Length of the signal, a positive multiple of `hop`.
            sample_rate_hz: Rate of the signal.
            hop: Hop of the STFT in samples; windows start and stop at multiples of it.

        Returns:
            The windows in order, all of the same length. At every sample their weights add up to one.

        Raises:
            ValueError: `samples` is not a positive multiple of `hop`.
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
        # Starts are rounded down, so no two are further apart than size - overlap.
        starts = [(samples - size) * i // (steps * hop) * hop for i in range(steps + 1)]
        joins = [(start + size - future - fade, start + size - future) for start in starts[:-1]]
        return [
            Window(start, start + size, fade_in, fade_out)
            for start, fade_in, fade_out in zip(starts, [(0, 0), *joins], [*joins, (samples, samples)], strict=True)
        ]


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _ramp(span: tuple[int, int]) -> NDArray[np.float32]:
    """Return weights that rise from 0 to 1, exclusive, one for each sample of the span."""
    samples = span[1] - span[0]
    return ((np.arange(samples, dtype=np.float32) + 0.5) / max(samples, 1)).astype(np.float32)
