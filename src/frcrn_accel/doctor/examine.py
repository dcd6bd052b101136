"""Looking at everything that decides how this library runs here, in one report."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import numpy as np

from frcrn_accel._version import __version__
from frcrn_accel.backends import BackendStatus, backend_statuses
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.doctor.machine import CpuReport, GpuDevice, GpuReport, examine_cpu, examine_gpu
from frcrn_accel.doctor.privacy import without_names
from frcrn_accel.errors import BackendUnavailable
from frcrn_accel.models import CACHE_DIR_VARIABLE, DEFAULT_MODEL, cache_folder, cached_files, find_model
from frcrn_accel.prepare.inventory import model_statuses

__all__ = [
    "SCHEMA_PATH",
    "BackendReport",
    "CacheReport",
    "CpuReport",
    "FileReport",
    "GpuDevice",
    "GpuReport",
    "ModelReport",
    "Report",
    "examine",
    "installed_packages",
]

SCHEMA_VERSION = 1  # goes up when a field changes its meaning or goes away
SCHEMA_PATH = Path(__file__).with_name("schema.json")
_TRIAL_SAMPLES = 16_000  # one second of quiet noise, for each backend
_TRIAL_RATE_HZ = 16_000


@dataclass(frozen=True)
class BackendReport:
    """A backend, tried out with the packaged model.

    Attributes:
        name: Its name.
        description: One line of what it is.
        usable: Whether it has denoised a second of noise.
        auto: Whether `backend="auto"` takes it for the packaged model.
        precision: The number format it computed in; None if it did not.
        device: What it really ran on, asked of the engine; None if it did not.
        reason: Why it is not usable; None if it is.
        remedy: What to do about it; None if it is usable.
    """

    name: str
    description: str
    usable: bool
    auto: bool
    precision: str | None
    device: str | None
    reason: str | None
    remedy: str | None


@dataclass(frozen=True)
class FileReport:
    """A cached file.

    Attributes:
        name: Of the file.
        bytes: Its size.
        problem: What is wrong with it; None if it is whole.
    """

    name: str
    bytes: int
    problem: str | None


@dataclass(frozen=True)
class CacheReport:
    """The cache folder.

    Attributes:
        folder: Where it is.
        exists: Whether it is there: it is made when it is first needed.
        writable: Whether it, or the folder it would be made in, can be written.
        bytes: Of all files in it.
        files: Those of this library.
    """

    folder: str
    exists: bool
    writable: bool
    bytes: int
    files: tuple[FileReport, ...]


@dataclass(frozen=True)
class ModelReport:
    """A model that has a name.

    Attributes:
        name: Its name.
        place: "packaged", "imported" or "absent".
        licence: Of the weights; "" if that is not known.
        checkpoint_sha256: Digest of its checkpoint; "" if that is not known.
        verified: Whether its files have the digests they should have; None if it is absent.
        variants: Methods of the quantized files that are here.
        problem: What is wrong with its files; None if nothing is.
    """

    name: str
    place: str
    licence: str
    checkpoint_sha256: str
    verified: bool | None
    variants: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class Report:
    """The state of an installation.

    Attributes:
        version: Of this library.
        python: Version and implementation.
        system: System, its release and the machine's architecture.
        packages: Versions of the packages that this library or an extra of it asks for; None for one not installed.
        backends: Each installed backend.
        cpu: The CPU.
        gpu: The GPUs.
        cache: The cache folder.
        models: Each model that has a name.
        problems: What should be repaired, a line each.
    """

    version: str
    python: str
    system: str
    packages: dict[str, str | None]
    backends: tuple[BackendReport, ...]
    cpu: CpuReport
    gpu: GpuReport
    cache: CacheReport
    models: tuple[ModelReport, ...]
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything, as what `json.dumps` takes, without names of users and hosts; `schema.json` describes it."""
        values: dict[str, Any] = without_names({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})
        return values


def examine(progress: Callable[[str], None] | None = None) -> Report:
    """Look at the installation and the machine, and try out every backend.

    Args:
        progress: Called with what is being looked at.
    """
    tell = progress or _tell_nobody
    tell("packages")
    packages = installed_packages()
    tell("CPU and GPU")
    cpu, gpu = examine_cpu(), examine_gpu()
    tell("cache")
    cache = _examine_cache()
    tell("models")
    models = _examine_models()
    backends = _examine_backends(tell)
    return Report(
        version=__version__,
        python=f"{platform.python_version()} {platform.python_implementation()}",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=packages,
        backends=backends,
        cpu=cpu,
        gpu=gpu,
        cache=cache,
        models=models,
        problems=tuple(_problems(packages, backends, cache, models)),
    )


def installed_packages() -> dict[str, str | None]:
    """Versions of the packages that the library's own metadata names; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for requirement in requires("frcrn-accel") or []:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return dict(sorted(found.items()))


def _examine_backends(tell: Callable[[str], None]) -> tuple[BackendReport, ...]:
    statuses = backend_statuses(find_model(DEFAULT_MODEL))
    reports = []
    for status in statuses:
        tell(f"backend {status.name}")
        reports.append(_examine_backend(status))
    usable = [status.name for status in statuses if status.usable and status.priority >= 0]
    return tuple(dataclasses.replace(report, auto=report.name in usable[:1]) for report in reports)


def _examine_backend(status: BackendStatus) -> BackendReport:
    if status.problem is not None:
        return _unusable(status, status.problem.reason, status.problem.remedy)
    noise = 0.01 * np.random.default_rng(0).standard_normal(_TRIAL_SAMPLES).astype(np.float32)
    try:
        with Denoiser(DEFAULT_MODEL, backend=status.name) as denoiser:
            denoiser(noise, _TRIAL_RATE_HZ)
            return BackendReport(
                status.name, status.description, True, False, denoiser.precision, denoiser.device, None, None
            )
    except BackendUnavailable as error:
        return _unusable(status, error.reason, error.remedy)
    except Exception as error:  # a plug-in may fail in any way, and that is what a report is for
        return _unusable(status, f"{type(error).__name__}: {error}", "report it with this report")


def _unusable(status: BackendStatus, reason: str, remedy: str) -> BackendReport:
    return BackendReport(status.name, status.description, False, False, None, None, reason, remedy)


def _examine_cache() -> CacheReport:
    folder = cache_folder()
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return CacheReport(
        folder=str(folder),
        exists=folder.is_dir(),
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        files=tuple(FileReport(file.path.name, file.bytes, file.problem) for file in cached_files()),
    )


def _examine_models() -> tuple[ModelReport, ...]:
    return tuple(
        ModelReport(
            name=status.name,
            place=status.place,
            licence=status.licence,
            checkpoint_sha256=status.checkpoint_sha256,
            verified=None if status.path is None and status.problem is None else status.problem is None,
            variants=status.variants,
            problem=status.problem,
        )
        for status in model_statuses()
    )


def _problems(
    packages: dict[str, str | None],
    backends: tuple[BackendReport, ...],
    cache: CacheReport,
    models: tuple[ModelReport, ...],
) -> list[str]:
    problems = []
    if not any(backend.usable for backend in backends):
        problems.append("no backend can run: pip install 'frcrn-accel[ort]' brings one for every CPU")
    if packages.get("onnxruntime") and packages.get("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: pip uninstall -y "
            "onnxruntime onnxruntime-gpu, then install one of them"
        )
    if not cache.writable:
        problems.append(f"the cache folder {cache.folder} cannot be written: name another in {CACHE_DIR_VARIABLE}")
    problems += [f"cached file {file.name}: {file.problem}" for file in cache.files if file.problem]
    problems += [f"model {model.name}: {model.problem}" for model in models if model.problem]
    return problems


def _tell_nobody(what: str) -> None:
    """Without progress."""
