"""Find backends: entry points of one group, the built-in ones included.

A plug-in is foreign code. Whatever it raises while it is imported, checked or asked for its priority, an attempt to
exit included, makes only that plug-in unusable.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
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
_BUILT_IN = "frcrn_accel."

log = logging.getLogger("frcrn_accel")


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend is usable here.

    Attributes:
        name: Its name.
        description: One line.
        priority: Its priority under `backend="auto"`.
        precisions: Number formats that it computes in, the default first; empty if unknown.
        problem: Why it cannot be used and what to do; None if it is usable.
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
    """Return all installed backends, the one that `"auto"` picks first.

    Args:
        model: The model to run; None for any fp32 model.
    """
    return sorted((_status_of(point, model) for point in _entry_points().values()), key=_rank)


def resolve_backend(
    backend: str | type[Backend] | Backend,
    precision: str | None = None,
    calibration: str | Path | None = None,
    model: ModelFile | None = None,
) -> Backend:
    """Turn the user's choice into a backend that can run here.

    Args:
        backend: A name, `"auto"`, a class or an instance.
        precision: Number format to compute in, one of the backend's; None for its default. `"auto"` considers
            only backends that have it. An instance has its own already.
        calibration: Folder of noisy speech, for a backend that calibrates. An instance has its own already.
        model: The model to run, for `"auto"`.

    Raises:
        UnknownBackendError: No backend of that name is installed.
        UnsupportedPrecisionError: The backend does not compute in that number format.
        BackendUnavailable: The backend is installed but cannot run here.
        ValueError: `precision` differs from that of a given instance, or `calibration` was given with an instance
            or for a backend that does not calibrate.
        TypeError: `backend` is not a name, a `Backend` class or an instance of one.
    """
    if isinstance(backend, str):
        backend = _choose(precision, model) if backend == AUTO else _load_class(_entry_point(backend))
    if isinstance(backend, type) and issubclass(backend, Backend):
        # A class without options need not accept these.
        options: dict[str, Any] = {"precision": precision, "calibration": calibration}
        backend = backend(**{name: value for name, value in options.items() if value is not None})
    elif calibration is not None:
        raise ValueError("backend is an instance already: pass calibration to its class")
    if not isinstance(backend, Backend):
        raise TypeError(f"backend must be a name, a Backend class or an instance of one, got {backend!r}")
    if precision is not None and backend.precision != precision:
        raise ValueError(
            f"the given backend instance has precision {backend.precision!r}, not {precision!r}: "
            f"construct it with {type(backend).__name__}(precision={precision!r})"
        )
    with _plugin_errors(backend.name, type(backend).__qualname__):
        backend.check()
    return backend


def _choose(precision: str | None, model: ModelFile | None) -> type[Backend]:
    """Return the usable backend with the highest priority.

    A check may import an engine: PyTorch alone takes longer than denoising a minute of audio. So backends are checked
    in the order of their priorities, up to the first that can run.
    """
    points = _entry_points().values()
    unusable: list[BackendStatus] = []
    for point in sorted(points, key=lambda point: (-_unchecked_priority(point, model), point.name)):
        status = _status_of(point, model)
        if status.problem is not None:
            unusable.append(status)
        elif status.priority >= 0 and (precision is None or precision in status.precisions):
            log.info("backend 'auto' chose %r, the usable backend with the highest priority", point.name)
            return _load_class(point)
    if precision is not None:
        every = sorted({name for status in backend_statuses() if status.usable for name in status.precisions})
        raise UnsupportedPrecisionError(AUTO, precision, every)
    remedies = "; ".join(str(status.problem) for status in sorted(unusable, key=_rank))
    raise BackendUnavailable(
        AUTO, "no backend can run", f"make one usable: {remedies}" if remedies else "reinstall frcrn-accel"
    )


def _rank(status: BackendStatus) -> tuple[bool, int, str]:
    """Return the sort key of a backend in lists: first what `"auto"` takes first."""
    return not status.usable, -status.priority, status.name


def _unchecked_priority(point: EntryPoint, model: ModelFile | None) -> float:
    """Return the priority of a backend that may not be usable; infinity, to check it first, if its code fails."""
    try:
        backend = point.load()
        return int(backend.priority if model is None else backend.priority_for(model))
    except KeyboardInterrupt:
        raise
    except BaseException:  # its status reports the error
        return math.inf


def _entry_points() -> dict[str, EntryPoint]:
    """Return the entry points by name; a built-in backend comes before a plug-in of the same name."""
    found: dict[str, EntryPoint] = {}
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: not _is_built_in(point))
    for point in points:
        used = found.setdefault(point.name, point)
        if point.value != used.value:
            log.warning("two backends are named %r: using %s, ignoring %s", point.name, used.value, point.value)
    return found


def _is_built_in(point: EntryPoint) -> bool:
    return point.value.startswith(_BUILT_IN)


def _status_of(point: EntryPoint, model: ModelFile | None) -> BackendStatus:
    name = point.name
    try:
        backend = _load_class(point)
    except BackendUnavailable as error:
        return BackendStatus(name, "", -1, (), error)
    description, priority = "", -1
    precisions: tuple[str, ...] = ()
    try:
        with _plugin_errors(name, f"{backend.__module__}:{backend.__name__}"):
            description, precisions = str(backend.description), tuple(backend.precisions)
            priority = int(backend.priority)
            backend.check()
            if model is not None:
                priority = int(backend.priority_for(model))
    except BackendUnavailable as error:
        return BackendStatus(name, description, priority, precisions, error)
    return BackendStatus(name, description, priority, precisions, None)


def _entry_point(name: str) -> EntryPoint:
    points = _entry_points()
    if name not in points:
        raise UnknownBackendError(f"unknown backend {name!r}: installed are {', '.join(sorted(points))}, or 'auto'")
    return points[name]


def _load_class(point: EntryPoint) -> type[Backend]:
    with _plugin_errors(point.name, point.value):
        loaded = point.load()
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise BackendUnavailable(
            point.name,
            f"its entry point {point.value} is not a subclass of Backend",
            "repair or uninstall the plug-in",
        )
    return loaded


@contextmanager
def _plugin_errors(name: str, value: str) -> Iterator[None]:
    """Turn whatever a backend's own code raises, or an attempt to exit, into `BackendUnavailable` with a warning.

    Args:
        name: Name of the backend.
        value: Location of its class.
    """
    try:
        yield
    except (BackendUnavailable, KeyboardInterrupt):
        raise
    except BaseException as error:
        log.warning("backend %r (%s) is left out: %r", name, value, error)
        raise BackendUnavailable(
            name, f"its plug-in {value} failed ({error!r})", "repair or uninstall the plug-in"
        ) from error
