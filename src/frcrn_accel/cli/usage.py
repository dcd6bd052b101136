"""Options that the library refuses, and numbers that no option accepts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

from frcrn_accel.errors import FrcrnAccelError

__all__ = ["check_numbers", "usage_errors"]

_LARGEST = 2**31 - 1  # of any unit that an option has
_MAY_BE_INFINITE = {"attenuation_limit_db"}  # infinity is "no limit"


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a `ValueError` of the library about an option into a usage error, which is shown on one line."""
    try:
        yield
    except FrcrnAccelError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def check_numbers(command: Any) -> None:
    """Let all options of a command and its subcommands refuse NaN, infinity and numbers too large to be useful.

    Args:
        command: A command of typer, whose class is not public.
    """
    for parameter in command.params:
        _check_parameter(parameter)
    for below in getattr(command, "commands", {}).values():
        check_numbers(below)


def _check_parameter(parameter: Any) -> None:
    earlier = parameter.callback

    def check(context: Any, found: Any, value: Any) -> Any:
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)):
                _check_number(number, found)
        return value if earlier is None else earlier(context, found, value)

    parameter.callback = check


def _check_number(number: float, parameter: Any) -> None:
    if math.isinf(number) and parameter.name in _MAY_BE_INFINITE and number > 0:
        return
    if not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not a finite number", param_hint=f"'{parameter.opts[-1]}'")
    if abs(number) > _LARGEST:
        raise typer.BadParameter(f"{number} is too large", param_hint=f"'{parameter.opts[-1]}'")
