"""Recover from engine failures during a call: log once, wait, try again."""

from __future__ import annotations

import logging
import threading

__all__ = ["TRUSTED_AFTER_S", "Recovery", "is_interrupt"]

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0
TRUSTED_AFTER_S = 10.0

_log = logging.getLogger(__name__)


def is_interrupt(error: BaseException) -> bool:
    """Return whether an error is the user's Ctrl-C, which Python raises in the main thread only."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()


class Recovery:
    """Decide when to try again after a failure. Time is that of the audio.

    The first wait is 1 s; each failure doubles the next, up to 30 s. After 10 s of denoised audio the failure is
    over, and waits start at 1 s again. A failure is logged when it begins and when it is over.

    Args:
        sample_rate_hz: Rate of the audio.
    """

    def __init__(self, sample_rate_hz: int) -> None:
        self._rate_hz = sample_rate_hz
        self._wait_s = _FIRST_WAIT_S
        self._waiting_samples = 0
        self._denoised_samples = 0
        self._is_failing = False

    @property
    def is_due(self) -> bool:
        """Whether the wait is over."""
        return self._waiting_samples <= 0

    def fail(self, what: str, error: BaseException) -> None:
        """Note a failure, and wait."""
        level = logging.DEBUG if self._is_failing else logging.ERROR
        _log.log(level, "%s: the audio is returned unprocessed until a retry succeeds", what, exc_info=error)
        self._is_failing = True
        self._denoised_samples = 0
        self._waiting_samples = round(self._wait_s * self._rate_hz)
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)

    def advance(self, samples: int, *, denoising: bool) -> None:
        """Count audio that has passed, denoised or not."""
        if not denoising:
            self._waiting_samples -= samples
        elif self._is_failing:
            self._denoised_samples += samples
            if self._denoised_samples >= TRUSTED_AFTER_S * self._rate_hz:
                self._is_failing = False
                self._wait_s = _FIRST_WAIT_S
                _log.warning("the audio is denoised again")
