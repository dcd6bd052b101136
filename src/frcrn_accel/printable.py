"""Text for terminals and logs: what is not printable is escaped."""

from __future__ import annotations

import logging

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
    """Escape what is not printable in warnings that are logged and that no handler takes, in this process."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(SafeFormatter())
