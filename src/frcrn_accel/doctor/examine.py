"""Examine everything that decides how this library runs on this machine, in one report."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from frcrn_accel._version import __version__
from frcrn_accel.backends import BackendStatus, backend_statuses
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.doctor.machine import CpuReport, GpuDevice, GpuReport, examine_cpu, examine_gpu
from frcrn_accel.doctor.privacy import without_names
from frcrn_accel.errors import BackendUnavailable, install_hint, one_line
from frcrn_accel.models import CACHE_DIR_VARIABLE, DEFAULT_MODEL, cache_folder, cached_files, find_model
from frcrn_accel.network.topology import SAMPLE_RATE_HZ
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

SCHEMA_VERSION = 1  # raised when a field changes its meaning or is removed
SCHEMA_PATH = Path(__file__).with_name("schema.json")
_TRIAL_S = 1  # quiet noise that each backend denoises


@dataclass(frozen=True)
class BackendReport:
    """A backend, tried with the packaged model.

    Attributes:
        name: Name of the backend.
        description: One-line description.
        usable: Whether it denoised a second of noise.
        auto: Whether `backend="auto"` chooses it for the packaged model.
        precision: Number format that it computed in; None if it is not usable.
        device: Device that it ran on, as reported by the engine; None if it is not usable.
        reason: Why it is not usable; None if it is.
        remedy: How to make it usable; None if it is.
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
        name: Name of the file.
        bytes: Size of the file.
        problem: What is wrong with it; None if it is intact.
    """

    name: str
    bytes: int
    problem: str | None


@dataclass(frozen=True)
class CacheReport:
    """The cache folder.

    Attributes:
        folder: Path of the folder.
        exists: Whether it exists: it is created when it is first needed.
        writable: Whether it, or the folder in which it would be created, can be written.
        bytes: Size of all files in it.
        files: The files of this library in it.
    """

    folder: str
    exists: bool
    writable: bool
    bytes: int
    files: tuple[FileReport, ...]


@dataclass(frozen=True)
class ModelReport:
    """A known or imported model.

    Attributes:
        name: Name of the model.
        place: "packaged", "imported" or "absent".
        licence: Licence of the weights; "" if it is not known.
        checkpoint_sha256: Digest of the checkpoint; "" if it is not known.
        verified: Whether its files have the expected digests; None if it is absent.
        variants: Methods of its variants (quantized files) on this machine.
        problem: What is wrong with its files; None if they are intact.
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
        version: Version of this library.
        python: Version and implementation of Python.
        system: Operating system, its release and the architecture of the machine.
        packages: Versions of the packages that this library or one of its extras requires; None for a package that is
            not installed.
        backends: The installed backends, in the order in which `backend="auto"` prefers them.
        cpu: The CPU.
        gpu: The GPUs.
        cache: The cache folder.
        models: The known and the imported models.
        problems: What to repair, one line each.
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
        """Return the report as `json.dumps` takes it, see `schema.json`, without names of users and hosts."""
        values: dict[str, Any] = without_names({"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)})
        return values


def examine(progress: Callable[[str], None] = lambda part: None) -> Report:
    """Examine the installation and the machine, and try every backend.

    Args:
        progress: Called with the name of each part before it is examined.
    """
    progress("packages")
    packages = installed_packages()
    progress("CPU and GPU")
    cpu, gpu = examine_cpu(), examine_gpu()
    progress("cache")
    cache = _examine_cache()
    progress("models")
    models = _examine_models()
    backends = _examine_backends(progress)
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
    """Return the versions of the packages that the library's metadata names; None for those not installed."""
    found: dict[str, str | None] = {}
    for requirement in metadata.requires("frcrn-accel") or []:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return dict(sorted(found.items()))


def _examine_backends(progress: Callable[[str], None]) -> tuple[BackendReport, ...]:
    statuses = backend_statuses(find_model(DEFAULT_MODEL))
    reports = []
    for status in statuses:
        progress(f"backend {status.name}")
        reports.append(_examine_backend(status))
    usable = [status.name for status in statuses if status.usable and status.priority >= 0]
    return tuple(dataclasses.replace(report, auto=report.name in usable[:1]) for report in reports)


def _examine_backend(status: BackendStatus) -> BackendReport:
    if status.problem is not None:
        return _unusable(status, status.problem.reason, status.problem.remedy)
    noise = 0.01 * np.random.default_rng(0).standard_normal(_TRIAL_S * SAMPLE_RATE_HZ).astype(np.float32)
    try:
        with Denoiser(DEFAULT_MODEL, backend=status.name) as denoiser:
            denoiser(noise, SAMPLE_RATE_HZ)
            return BackendReport(
                status.name, status.description, True, False, denoiser.precision, denoiser.device, None, None
            )
    except BackendUnavailable as error:
        return _unusable(status, error.reason, error.remedy)
    except Exception as error:  # a plug-in may fail in any way, and a report must show it
        return _unusable(status, one_line(error, with_type=True), "file a bug with the output of 'doctor --json'")


def _unusable(status: BackendStatus, reason: str, remedy: str) -> BackendReport:
    return BackendReport(status.name, status.description, False, False, None, None, reason, remedy)


def _examine_cache() -> CacheReport:
    folder = cache_folder()
    # On Windows, even the drive of the path may be missing.
    nearest = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    return CacheReport(
        folder=str(folder),
        exists=folder.is_dir(),
        writable=nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK),
        bytes=sum(map(_size, folder.rglob("*"))),
        files=tuple(FileReport(file.path.name, file.bytes, file.problem) for file in cached_files()),
    )


def _size(path: Path) -> int:
    """Return the size of a file, bytes; 0 for a folder, and for a file that another process has just deleted."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0


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
        problems.append(f"no backend can run: {install_hint('ort')} installs one that runs on every CPU")
    if packages.get("onnxruntime") and packages.get("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: pip uninstall -y "
            "onnxruntime onnxruntime-gpu, then install one of them"
        )
    if not cache.writable:
        problems.append(f"the cache folder {cache.folder} cannot be written: set {CACHE_DIR_VARIABLE} to another")
    problems += [f"cached file {file.name}: {file.problem}" for file in cache.files if file.problem]
    problems += [f"model {model.name}: {model.problem}" for model in models if model.problem]
    return problems
