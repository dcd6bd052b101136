"""Check numbers and paths that a caller passes, so that the error names the argument, not a line of this library."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from pathlib import Path

__all__ = ["file_path", "real_number", "shown", "whole_number"]

_SHOWN_CHARACTERS = 40


def real_number(name: str, value: object) -> float:
    """Return an argument as a float: infinite if it is an integer that no float can hold.

    >>> real_number("step_s", 1), real_number("step_s", 10**400)
    (1.0, inf)

    Raises:
        ValueError: It is not a real number. NaN and infinity count as numbers.
    """
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {shown(value)}")
    try:
        return float(value)
    except OverflowError:
        return -math.inf if value < 0 else math.inf


def whole_number(name: str, value: object) -> int:
    """Return an argument as an integer.

    Raises:
        ValueError: It is not an integer.
    """
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}")
    return int(value)


def file_path(name: str, value: object) -> Path:
    """Return an argument as a path.

    Raises:
        TypeError: It is no path, or one of bytes.
    """
    if not isinstance(value, str | os.PathLike) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    return Path(value)


def shown(value: object) -> str:
    """Return a value for a message: its first 40 characters."""
    try:
        return repr(value)[:_SHOWN_CHARACTERS]
    except ValueError:  # Python writes no integers of more than 4,300 digits
        return "a number of thousands of digits"
