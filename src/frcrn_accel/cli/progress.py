"""Lines and progress bars on standard error.

rich draws the bars. Commands that take seconds load it only if there is a terminal to draw on.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from frcrn_accel.printable import printable
from frcrn_accel.progress import Progress, no_progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

__all__ = ["preparation", "preparation_log", "print_line", "progress_bar", "terminal"]

_TAKEN_FOR_A_TERMINAL = ("FORCE_COLOR", "TTY_COMPATIBLE")  # by rich, depending on their values
# Loggers of the modules that make files; each announces work that takes minutes.
_PREPARING = ("frcrn_accel.prepare", "frcrn_accel.backends.tensorrt_plan")


def terminal() -> Console | None:
    """Return rich's console on standard error; None if that is neither a terminal nor to be treated as one."""
    if not sys.stderr.isatty() and not any(name in os.environ for name in _TAKEN_FOR_A_TERMINAL):
        return None
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else None


def print_line(console: Console | None, text: str) -> None:
    """Print a line to standard error, above the bars of a console; None for no bars.

    What is not printable in it is escaped: names may hold anything.
    """
    if console is None:
        print(printable(text), file=sys.stderr, flush=True)
    else:
        console.print(printable(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(console: Console | None) -> Iterator[Progress]:
    """Draw a bar for each step that runs, and for the last that is done; without a terminal, draw nothing.

    A step of one unit has a moving bar: how much of it is done is not known.
    """
    if console is None:
        yield no_progress
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if done == 0 or what not in tasks:
                for task in bars.tasks:
                    bars.update(task.id, visible=not task.finished)
                if what in tasks:
                    bars.remove_task(tasks[what])
                tasks[what] = bars.add_task(printable(what), total=None if total == 1 else total)
            bars.update(tasks[what], completed=done, total=total if done else None)

        yield show


@contextmanager
def preparation(console: Console | None) -> Iterator[Progress]:
    """Show what is prepared while a denoiser and its streams are opened: log lines, and a bar for each step."""
    with preparation_log(console), progress_bar(console) as show:
        yield show


@contextmanager
def preparation_log(console: Console | None) -> Iterator[None]:
    """Print the log lines about files that are prepared."""
    handler = _ConsoleHandler(console)
    loggers = [logging.getLogger(name) for name in _PREPARING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


class _ConsoleHandler(logging.Handler):
    """Prints records above the bars."""

    def __init__(self, console: Console | None) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        print_line(self._console, record.getMessage())
