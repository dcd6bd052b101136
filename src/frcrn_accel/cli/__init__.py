"""The command line, one file per command. The work itself is done by the library."""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from frcrn_accel._version import __version__
from frcrn_accel.cli.groups import GroupedCommands
from frcrn_accel.errors import FrcrnAccelError
from frcrn_accel.posix_signals import Stopped
from frcrn_accel.printable import escape_warnings, printable

__all__ = ["app", "main"]

app = typer.Typer(
    name="frcrn-accel",
    help="Remove noise from speech with FRCRN, on the fastest backend that this machine has.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    cls=GroupedCommands,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"frcrn-accel {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _fill_closed_streams() -> None:
    """Open the standard streams that are closed, as after `2>&-`: a library's notes must not end up in an output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stderr is None:
        sys.stderr = io.StringIO()


def main() -> NoReturn:
    """Run the command line. An error is one line on stderr and exit code 2, without a traceback.

    A signal ends it with 128 plus its number, as a shell reports it. A closed pipe ends it without a message
    (click does that).
    """
    _fill_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # like stderr: any name can be shown
    escape_warnings()
    # Without this, Python searches all modules for reference cycles at its exit: 60 ms, or 90 with OpenVINO.
    atexit.register(gc.freeze)
    command = typer.main.get_command(app)
    try:
        # Without "standalone mode" usage errors are raised too, and can be printed on one line like all others.
        code = command(prog_name="frcrn-accel", standalone_mode=False)
    except FrcrnAccelError as error:
        code = _fail(str(error))
    except Stopped as stopped:
        print("frcrn-accel: stopped", file=sys.stderr)
        code = 128 + stopped.number
    except OSError as error:
        code = _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except Exception as error:
        message = getattr(error, "format_message", None)  # the base of typer's usage errors is not public
        if message is None:
            raise
        code = _fail(message())
    sys.exit(code or 0)


def _fail(message: str) -> int:
    print(f"frcrn-accel: error: {printable(message)}", file=sys.stderr)
    return 2
