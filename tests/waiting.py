"""Wait for another thread or process, without a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["until"]

Value = TypeVar("Value")
_LONGEST_S = 60


def until(look: Callable[[], Value], holds: Callable[[Value], bool]) -> Value:
    """Call `look` until its result holds, and return that; fail after a minute."""
    deadline = time.monotonic() + _LONGEST_S
    while True:
        value = look()
        if holds(value):
            return value
        assert time.monotonic() < deadline, value
        del value  # the next look may be at whether it was freed
