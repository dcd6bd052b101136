"""Remove the names of users, hosts and home folders from a report."""

from __future__ import annotations

import getpass
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["without_names"]


def without_names(value: Any) -> Any:
    """Return a JSON value with the home folder as `~`, and user and host names in paths as `<user>` and `<host>`.

    A name is replaced only where it is part of a path: as a plain word, "root" or "linux" may mean something else.
    """
    return _replaced(value, [*_home_patterns(), *_name_patterns()])


def _home_patterns() -> list[tuple[re.Pattern[str], str]]:
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home folder
        return []
    # The longest first: one may be part of the other. "/" is nobody's home.
    homes = sorted({str(home), str(home.resolve())} - {home.anchor}, key=len, reverse=True)
    return [(re.compile(rf"(?<![\w.-]){re.escape(path)}(?![\w.-])", re.IGNORECASE), "~") for path in homes]


def _name_patterns() -> list[tuple[re.Pattern[str], str]]:
    host = socket.gethostname()
    names = [(host, "<host>"), (host.partition(".")[0], "<host>")]
    with suppress(OSError, KeyError, ImportError):  # a user without a name
        names.append((getpass.getuser(), "<user>"))
    return [
        (re.compile(rf"(?<=[\\/]){re.escape(name)}(?![\w.-])", re.IGNORECASE), mask) for name, mask in names if name
    ]


def _replaced(value: Any, patterns: list[tuple[re.Pattern[str], str]]) -> Any:
    if isinstance(value, dict):
        return {_replaced(key, patterns): _replaced(item, patterns) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(item, patterns) for item in value]
    if isinstance(value, str):
        for pattern, mask in patterns:
            value = pattern.sub(mask, value)
    return value
