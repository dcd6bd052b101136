"""Options that the library refuses, and numbers that no option accepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from frcrn_accel.errors import FrcrnAccelError
from frcrn_accel.numerals import to_number, to_whole

__all__ = ["check_numbers", "usage_errors"]

_LARGEST = 2**31 - 1  # of any unit that an option has
_INFINITE, _MAY_BE_INFINITE = "inf", {"attenuation_limit_db"}  # which is "no limit"


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
    """Let all options of a command and its subcommands take plain finite numbers only, not too large to be useful.

    Args:
        command: A command of typer, whose class is not public.
    """
    for parameter in command.params:
        _check_parameter(parameter)
    for below in getattr(command, "commands", {}).values():
        check_numbers(below)


def _check_parameter(parameter: Any) -> None:
    """Compare what typer made of the text of an option with the text: its versions read numbers differently."""
    process = parameter.process_value

    def check(context: Any, given: Any) -> Any:
        value = process(context, given)
        for text, number in zip(_listed(given), _listed(value), strict=False):
            if isinstance(text, str) and isinstance(number, (int, float)):
                _check_number(text, number, parameter)
        return value

    parameter.process_value = check


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _check_number(text: str, number: float, parameter: Any) -> None:
    if text == _INFINITE and parameter.name in _MAY_BE_INFINITE:
        return
    fault = ""
    if isinstance(number, int) and to_whole(text.removeprefix("-")) is None:
        fault = "is not a whole number in plain digits"
    elif to_number(text) is None:
        fault = "is not a finite number in plain digits"
    elif abs(number) > _LARGEST:
        fault = "is too large"
    if fault:
        raise typer.BadParameter(f"{text[:40]!r} {fault}", param_hint=f"'{parameter.opts[-1]}'")
