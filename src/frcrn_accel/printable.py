"""Text for terminals and logs: what is not printable is escaped."""

from __future__ import annotations

import logging
from copy import copy

__all__ = ["SafeFormatter", "escape_warnings", "printable"]


def printable(text: object) -> str:
    """Return a text for the terminal, with escapes for control characters and bytes that are not text.

    A file name may hold any byte but a slash and a zero.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


class SafeFormatter(logging.Formatter):
    """A formatter that escapes what is not printable in messages; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record, see `logging.Formatter`."""
        return printable(super().formatMessage(record))


def escape_warnings() -> None:
    """Show warnings that are logged and that no handler takes on one line each, escaped, in this process."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_LineFormatter())


class _LineFormatter(SafeFormatter):
    """A formatter for commands: of an error only its message is shown, not the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, see `logging.Formatter`."""
        if record.exc_info:
            error, record = record.exc_info[1], copy(record)
            record.msg, record.args = f"{record.getMessage()}: {error}", None
            record.exc_info = record.exc_text = None
        return super().format(record)
