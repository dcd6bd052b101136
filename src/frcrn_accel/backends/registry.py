"""Finding backends: entry points of one group, the built-in ones included."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from frcrn_accel.backends.base import Backend
from frcrn_accel.errors import BackendUnavailable, UnknownBackendError, UnsupportedPrecisionError
from frcrn_accel.models import ModelFile

__all__ = ["ENTRY_POINT_GROUP", "BackendStatus", "backend_statuses", "resolve_backend"]

ENTRY_POINT_GROUP = "frcrn_accel.backends"
AUTO = "auto"

log = logging.getLogger("frcrn_accel")


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can be used here.

    Attributes:
        name: Its name.
        description: One line of what it is.
        priority: Its rank for `backend="auto"`.
        precisions: The number formats it computes in, the default first; empty if that is not known.
        problem: Why it cannot be used and what to do; None if it can.
    """

    name: str
    description: str
    priority: int
    precisions: tuple[str, ...]
    problem: BackendUnavailable | None

    @property
    def usable(self) -> bool:
        """Whether it can run here."""
        return self.problem is None


def backend_statuses(model: ModelFile | None = None) -> list[BackendStatus]:
    """All installed backends, the one that `"auto"` would take first.

    Args:
        model: The model that it would take it for; None for any fp32 model.
    """
    statuses = []
    for name in _entry_points():
        try:
            backend = _load_class(name)
            problem = _problem_of(backend)
            priority = backend.priority
            if model is not None and problem is None:
                priority = backend.priority_for(model)
            status = BackendStatus(name, backend.description, priority, backend.precisions, problem)
        except BackendUnavailable as error:
            status = BackendStatus(name, "", -1, (), error)
        statuses.append(status)
    return sorted(statuses, key=lambda status: (not status.usable, -status.priority, status.name))


def resolve_backend(
    backend: str | type[Backend] | Backend,
    precision: str | None = None,
    calibration: str | Path | None = None,
    model: ModelFile | None = None,
) -> Backend:
    """Turn what the user gave into a backend that can run here.

    Args:
        backend: A name, `"auto"`, a class or an instance.
        precision: Number format to compute in, one of the backend's; None for its default. `"auto"` takes only
            backends that have it. An instance has its own already.
        calibration: Folder with noisy speech, for a backend that measures ranges. An instance has its own already.
        model: What it is to run, for `"auto"`.

    Raises:
        UnknownBackendError: No backend of that name is installed.
        UnsupportedPrecisionError: It does not compute in that number format.
        BackendUnavailable: It is installed but cannot run here.
        ValueError: `precision` was given beside an instance with another one, or `calibration` beside an instance or
            to a backend that has no use for it.
    """
    if isinstance(backend, str):
        backend = _choose(precision, model) if backend == AUTO else _load_class(backend)
    if isinstance(backend, type) and issubclass(backend, Backend):
        # A class without options need not know of these.
        options: dict[str, Any] = {"precision": precision, "calibration": calibration}
        backend = backend(**{name: value for name, value in options.items() if value is not None})
    elif calibration is not None:
        raise ValueError("the backend given is made already: give calibration to its class")
    if not isinstance(backend, Backend):
        raise TypeError(f"backend must be a name, a Backend class or an instance of one, got {backend!r}")
    if precision is not None and backend.precision != precision:
        raise ValueError(
            f"the backend given has precision {backend.precision!r}, not {precision!r}: "
            f"make it with {type(backend).__name__}(precision={precision!r})"
        )
    backend.check()
    return backend


def _choose(precision: str | None, model: ModelFile | None) -> type[Backend]:
    statuses = [
        status
        for status in backend_statuses(model)
        if precision is None or precision in status.precisions or status.problem
    ]
    usable = [status for status in statuses if status.usable and status.priority >= 0]
    if not usable and precision is not None:
        every = sorted({name for status in backend_statuses() if status.usable for name in status.precisions})
        raise UnsupportedPrecisionError(AUTO, precision, every)
    if not usable:
        remedies = "; ".join(str(status.problem) for status in statuses if status.problem is not None)
        raise BackendUnavailable(AUTO, "no backend can run", f"for one: {remedies}" if remedies else "reinstall")
    chosen, others = usable[0], [status.name for status in usable[1:]]
    log.info(
        "backend 'auto' chose %r, the usable backend with the highest priority%s",
        chosen.name,
        f" (before {', '.join(others)})" if others else "",
    )
    return _load_class(chosen.name)


def _entry_points() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in found and point.value != found[point.name].value:
            log.warning("two backends are named %r: %s is used", point.name, found[point.name].value)
        found.setdefault(point.name, point)
    return found


def _load_class(name: str) -> type[Backend]:
    point = _entry_points().get(name)
    if point is None:
        names = ", ".join(sorted(_entry_points()))
        raise UnknownBackendError(f"unknown backend {name!r}: installed are {names}, or 'auto'")
    try:
        loaded = point.load()
    except Exception as error:  # a plug-in may fail in any way; that must not take the others down
        log.warning("backend %r (%s) cannot be loaded: %s", name, point.value, error)
        raise BackendUnavailable(
            name, f"its plug-in {point.value} cannot be loaded ({error!r})", "repair or uninstall the plug-in"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise BackendUnavailable(
            name,
            f"its entry point {point.value} is no subclass of Backend",
            "repair or uninstall the plug-in",
        )
    return loaded


def _problem_of(backend: type[Backend]) -> BackendUnavailable | None:
    try:
        backend.check()
    except BackendUnavailable as error:
        return error
    return None
