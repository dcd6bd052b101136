"""`frcrn-accel backends`."""

from __future__ import annotations

from frcrn_accel.backends import BackendStatus, backend_statuses
from frcrn_accel.cli.output import echo
from frcrn_accel.models import DEFAULT_MODEL, find_model

__all__ = ["backends"]


def backends() -> None:
    """List the backends: which can run here, and what the others need."""
    statuses = backend_statuses(find_model(DEFAULT_MODEL))
    chosen = next((status.name for status in statuses if status.usable and status.priority >= 0), None)
    for status in statuses:
        mark = " (auto)" if status.name == chosen else ""
        echo(f"{status.name:<16}  {_state(status)}{mark}")
        if status.description:
            echo(f"  {status.description}")


def _state(status: BackendStatus) -> str:
    if status.problem is not None:
        return f"cannot run: {status.problem.reason}; {status.problem.remedy}"
    return f"runs in {', '.join(status.precisions)}"
