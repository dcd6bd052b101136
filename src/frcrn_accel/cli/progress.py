"""Progress of commands that take minutes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from frcrn_accel.progress import Progress

__all__ = ["preparation", "preparation_log", "progress_bar"]

# Loggers of the modules that make files; each announces work that takes minutes.
_PREPARING = ("frcrn_accel.prepare", "frcrn_accel.backends.tensorrt_plan")


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress]:
    """Draw a bar for each step that runs, and for the last that is done; without a terminal, draw nothing.

    A step of one unit has a moving bar: how much of it is done is not known.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            if done == 0:
                for task in bars.tasks:
                    bars.update(task.id, visible=not task.finished)
                bars.reset(tasks[what], visible=True)
            bars.update(tasks[what], completed=done, total=None if done == 0 and total == 1 else total)

        yield show


@contextmanager
def preparation(console: Console) -> Iterator[Progress]:
    """Show what is prepared while a denoiser and its streams are opened: log lines, and a bar for each step."""
    with preparation_log(console), progress_bar(console) as show:
        yield show


@contextmanager
def preparation_log(console: Console) -> Iterator[None]:
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

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._console.print(record.getMessage(), markup=False, highlight=False, soft_wrap=True)
