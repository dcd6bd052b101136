"""Read numbers in text that comes from outside: queries, headers, metadata, environment variables.

Python's `float` and `int` read more than numbers as people write them: `1_0` is 10, blanks are dropped, digits of any
script count, and `infinity` and `nan` are numbers. Here only one form is valid, that of HTML's forms and of JSON.

Source: HTML Living Standard, section 2.3.4 ("Numbers").
"""

from __future__ import annotations

import math
import re

__all__ = ["to_number", "to_whole"]

_NUMBER = re.compile(r"-?([0-9]+(\.[0-9]+)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = re.compile(r"[0-9]+")
_MAX_CHARACTERS = 40
_MAX_DIGITS = 18  # of a size in bytes or a count of samples


def to_number(text: str) -> float | None:
    """Return the finite number that a text stands for; None if it does not.

    >>> to_number("1e1"), to_number("-.5"), to_number("1_0"), to_number(" 1"), to_number("1e999")
    (10.0, -0.5, None, None, None)
    """
    if len(text) > _MAX_CHARACTERS or _NUMBER.fullmatch(text) is None:
        return None
    number = float(text)
    return number if math.isfinite(number) else None


def to_whole(text: str) -> int | None:
    """Return the whole number, 0 or more, that a text stands for; None if it does not, or has more than 18 digits.

    >>> to_whole("16000"), to_whole("1_0"), to_whole("-1"), to_whole("٣")
    (16000, None, None, None)
    """
    return int(text) if len(text) <= _MAX_DIGITS and _WHOLE.fullmatch(text) is not None else None
