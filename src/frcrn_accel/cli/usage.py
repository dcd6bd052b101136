"""Options that the library refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from frcrn_accel.errors import FrcrnAccelError

__all__ = ["usage_errors"]


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a `ValueError` of the library about an option into a usage error, which is shown on one line."""
    try:
        yield
    except FrcrnAccelError:
        raise
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
