"""Run a benchmark, and report the measurements and the machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcrn_accel._version import __version__
from frcrn_accel.backends import resolve_backend
from frcrn_accel.bench.configurations import (
    BenchModel,
    Configuration,
    LeftOut,
    configuration_name,
    find_configurations,
)
from frcrn_accel.bench.ratios import Ratio, check_rounds
from frcrn_accel.bench.speed import Group, Row, loadable, measure_group
from frcrn_accel.bench.tables import machine_text
from frcrn_accel.bench.throughput import Throughput, measure_throughput, settings_for
from frcrn_accel.cpu import available_cpus
from frcrn_accel.doctor.examine import installed_packages
from frcrn_accel.doctor.machine import examine_cpu, examine_gpu
from frcrn_accel.doctor.privacy import without_names
from frcrn_accel.errors import BenchError
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality.clips import Clip

__all__ = [
    "SCHEMA_PATH",
    "BenchReport",
    "Machine",
    "describe_machine",
    "run_speed",
    "run_throughput",
]

SCHEMA_VERSION = 2  # incremented when a field changes its meaning or is removed
SCHEMA_PATH = Path(__file__).with_name("schema.json")
_ENGINES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu12", "torch")


@dataclass(frozen=True)
class Machine:
    """The machine that was measured.

    Attributes:
        cpu: Model name of the CPU; None if it is not known.
        features: Features of the CPU that affect speed.
        cpus: CPUs that a process may use.
        gpus: Names of the NVIDIA GPUs.
        system: Operating system and architecture.
        python: Version of Python.
        engines: Versions of the packages of engines.
        load_average: Load average of the last minute; None on systems that do not report it.
    """

    cpu: str | None
    features: tuple[str, ...]
    cpus: int
    gpus: tuple[str, ...]
    system: str
    python: str
    engines: dict[str, str]
    load_average: float | None

    def __str__(self) -> str:
        """Return it on one line."""
        return machine_text(dataclasses.asdict(self))


@dataclass(frozen=True)
class BenchReport:
    """The measurements of a benchmark.

    Attributes:
        version: Version of this library.
        began: Start, UTC, ISO 8601.
        machine: The machine.
        rounds: Turns of each configuration or setting.
        baselines: Names of the configurations that the others are compared with.
        groups: Groups of configurations that took turns.
        throughput: Settings for many files.
        left_out: Names of models, with what was not measured of them.
    """

    version: str
    began: str
    machine: Machine
    rounds: int
    baselines: tuple[str, ...]
    groups: tuple[Group, ...]
    throughput: tuple[Throughput, ...]
    left_out: tuple[tuple[str, LeftOut], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values, without names of users and hosts; `schema.json` describes it."""
        values: dict[str, Any] = without_names(
            {
                "schema_version": SCHEMA_VERSION,
                "version": self.version,
                "began": self.began,
                "machine": dataclasses.asdict(self.machine),
                "rounds": self.rounds,
                "baselines": list(self.baselines),
                "groups": [self._group(group) for group in self.groups],
                "throughput": [_throughput(found) for found in self.throughput],
                "left_out": [
                    {"model": model, "configuration": each.configuration, "reason": each.reason}
                    for model, each in self.left_out
                ],
            }
        )
        return values

    def _group(self, group: Group) -> dict[str, Any]:
        return {
            "model": group.model,
            "channels": group.channels,
            "unets": group.unets,
            "random_weights": group.random_weights,
            "length_s": group.length_s,
            "threads": group.threads,
            "noise_percent": group.noise_percent,
            "other_cpus": group.other_cpus,
            "alike": [
                {"configurations": [fast, slow], "times_faster": dataclasses.asdict(ratio)}
                for fast, slow, ratio in group.alike()
            ],
            "rows": [self._row(row, group) for row in group.rows],
        }

    def _row(self, row: Row, group: Group) -> dict[str, Any]:
        ratios: dict[str, Ratio | None] = {name: group.times_faster(row, name) for name in self.baselines}
        return {
            **{name: value for name, value in dataclasses.asdict(row).items() if name != "quality"},
            "median_s": row.median_s,
            "p95_s": row.p95_s,
            "real_time_factor": row.median_s / group.length_s,
            "times_faster": {name: dataclasses.asdict(ratio) for name, ratio in ratios.items() if ratio is not None},
            "quality": None if row.quality is None else dataclasses.asdict(row.quality),
        }


def run_speed(
    models: Sequence[BenchModel],
    *,
    configurations: Sequence[str] | None = None,
    baselines: Sequence[str] = (),
    lengths_s: Sequence[float] = (5.0,),
    threads: Sequence[int] = (),
    rounds: int = 15,
    quality: Sequence[Clip] | None = None,
    progress: Progress = no_progress,
) -> BenchReport:
    """Measure models in every configuration that can run here.

    Args:
        models: The models.
        configurations: Names of configurations (`BACKEND` or `BACKEND:PRECISION`); None for all that can run.
        baselines: Names of configurations that the others are compared with; by default `ort`, or the first.
        lengths_s: Lengths of the clips, in seconds.
        threads: Numbers of CPU threads; by default as many as this process may use.
        rounds: Turns of each configuration.
        quality: Speech in noise, at 16 kHz, on which outputs are compared; ignored for random weights. None to
            measure time only.
        progress: Called after each step.

    Raises:
        BenchError: There are too few rounds, a baseline is not measured, there is nothing to measure, or a
            configuration failed.
        FrcrnAccelError: See `find_configurations`.
    """
    check_rounds(rounds)
    began, machine = _now(), describe_machine()
    left_out: list[tuple[str, LeftOut]] = []
    plan: list[tuple[BenchModel, list[Configuration]]] = []
    for model in models:
        found, absent = find_configurations(model, configurations, progress)
        plan.append((model, found))
        left_out += [(model.file.metadata.name, each) for each in absent]
    names = list(dict.fromkeys(configuration.name for _, found in plan for configuration in found))
    for baseline in baselines:
        if baseline not in names:
            raise BenchError(f"baseline {baseline!r} is not measured; choose one of: {', '.join(names)}")
    groups: list[Group] = []
    for model, found in plan:
        counts = threads or (available_cpus(),)
        able, absent = loadable(found, counts[0], progress)
        left_out += [(model.file.metadata.name, each) for each in absent]
        first = True
        for count in counts:
            for length_s in lengths_s:
                group = measure_group(
                    able,
                    length_s=length_s,
                    threads=count,
                    rounds=rounds,
                    random_weights=model.random_weights,
                    # The sound does not depend on length and threads.
                    quality=quality if first and not model.random_weights else None,
                    progress=progress,
                )
                groups.append(group)
                first = False
    measured = list(dict.fromkeys(row.configuration for group in groups for row in group.rows))
    chosen = tuple(baselines) or ("ort" if "ort" in measured else measured[0],)
    return BenchReport(__version__, began, machine, rounds, chosen, tuple(groups), (), tuple(left_out))


def run_throughput(
    models: Sequence[BenchModel],
    *,
    configurations: Sequence[str] | None = None,
    file_s: float = 60.0,
    rounds: int = 6,
    progress: Progress = no_progress,
) -> BenchReport:
    """Find the setting with the highest throughput for many files: workers x threads x windows per call.

    Args:
        models: The models.
        configurations: Names of configurations; None for the one that `"auto"` takes.
        file_s: Length of a file, in seconds.
        rounds: Turns of each setting.
        progress: Called after each step.

    Raises:
        BenchError: There are too few rounds, there is nothing to measure, or a process failed.
        FrcrnAccelError: See `find_configurations`.
    """
    check_rounds(rounds)
    began, machine = _now(), describe_machine()
    found: list[Throughput] = []
    left_out: list[tuple[str, LeftOut]] = []
    for model in models:
        wanted = configurations if configurations is not None else [_auto(model)]
        chosen, absent = find_configurations(model, wanted, progress)
        left_out += [(model.file.metadata.name, each) for each in absent]
        for configuration in chosen:
            settings = settings_for(configuration, available_cpus())
            found.append(measure_throughput(configuration, settings, file_s=file_s, rounds=rounds, progress=progress))
    return BenchReport(__version__, began, machine, rounds, (), (), tuple(found), tuple(left_out))


def describe_machine() -> Machine:
    """Describe this machine."""
    cpu, gpu = examine_cpu(), examine_gpu()
    packages = installed_packages()
    try:
        load_average = os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        load_average = None
    return Machine(
        cpu=cpu.model,
        features=tuple(name for name, has in cpu.features.items() if has),
        cpus=cpu.threads,
        gpus=tuple(device.name for device in gpu.devices),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        engines={name: version for name in _ENGINES if (version := packages.get(name))},
        load_average=load_average,
    )


def _auto(model: BenchModel) -> str:
    """Return the name of the configuration that `"auto"` takes."""
    backend = resolve_backend("auto", model=model.file)
    return configuration_name(backend.name, backend.precision_for(model.file), backend.precisions)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _throughput(found: Throughput) -> dict[str, Any]:
    best = found.best
    return {
        "model": found.model,
        "configuration": found.configuration,
        "file_s": found.file_s,
        "best": dataclasses.asdict(best.setting),
        "rows": [
            {
                **dataclasses.asdict(row.setting),
                "times_s": row.times_s,
                "times_real_time": found.times_real_time(row),
                "peak_memory_bytes": row.peak_memory_bytes,
                "to_best": dataclasses.asdict(found.times_faster(row, best)),
            }
            for row in found.rows
        ],
    }
