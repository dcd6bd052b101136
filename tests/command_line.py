"""The command, run in this process."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from frcrn_accel import cli

__all__ = ["Result", "run_command"]


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run `frcrn-accel` with arguments; it must not print a traceback."""
    monkeypatch.setattr(sys, "argv", ["frcrn-accel", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return Result(exit_.value.code, captured.out, captured.err)
