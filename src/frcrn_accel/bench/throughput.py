"""Measure the throughput for many files: processes, threads, and windows per call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from frcrn_accel.bench.configurations import Configuration
from frcrn_accel.bench.ratios import Ratio, times_faster
from frcrn_accel.errors import BenchError
from frcrn_accel.processes import DenoiserProcess
from frcrn_accel.progress import Progress, no_progress

__all__ = ["BATCHES", "Setting", "SettingRow", "Throughput", "measure_throughput", "settings_for"]

BATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Setting:
    """How the CPUs of a machine are divided among workers.

    Attributes:
        workers: Processes, each working on a file of its own.
        threads: CPU threads of each; None for a backend that does not compute on the CPU.
        batch: Windows of a file in one call of the engine.
    """

    workers: int
    threads: int | None
    batch: int


@dataclass(frozen=True)
class SettingRow:
    """The measurements of one setting.

    Attributes:
        setting: The setting.
        times_s: Time from the start of its workers to the end of the last one, in each round.
        peak_memory_bytes: Peak memory of its processes together; None on systems that do not report it.
    """

    setting: Setting
    times_s: tuple[float, ...]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Throughput:
    """The settings of one configuration, measured in turns.

    Attributes:
        model: Name of the model.
        configuration: Name of the configuration.
        file_s: Length of each file.
        rows: The measurements.
    """

    model: str
    configuration: str
    file_s: float
    rows: tuple[SettingRow, ...]

    def times_real_time(self, row: SettingRow) -> float:
        """Return the seconds of audio that a setting denoises in a second."""
        return row.setting.workers * self.file_s / median(row.times_s)

    @property
    def best(self) -> SettingRow:
        """The fastest setting; of those that do not clearly differ from it, the one that takes the least memory."""
        fastest = max(self.rows, key=self.times_real_time)
        alike = [row for row in self.rows if row is fastest or not self.times_faster(fastest, row).is_clear]
        return min(alike, key=lambda row: (row.peak_memory_bytes or 0, -self.times_real_time(row)))

    def times_faster(self, row: SettingRow, other: SettingRow) -> Ratio:
        """Return how many times faster a setting is than another."""
        return times_faster(_per_file(row), _per_file(other))


def settings_for(configuration: Configuration, cpus: int, batches: Sequence[int] = BATCHES) -> list[Setting]:
    """Return the settings to measure: all CPUs, divided among 1, 2, 4, ... workers, up to one for each CPU.

    Args:
        configuration: The configuration; threads and batches are varied only where they have an effect.
        cpus: Number of CPUs.
        batches: Numbers of windows per call.
    """
    workers = sorted({*(2**power for power in range(cpus.bit_length())), cpus})
    if not configuration.computes_batches:
        batches = (1,)
    return [
        Setting(count, cpus // count if configuration.uses_threads else None, batch)
        for count in workers
        for batch in batches
    ]


def measure_throughput(
    configuration: Configuration,
    settings: Sequence[Setting],
    *,
    file_s: float,
    rounds: int,
    progress: Progress = no_progress,
) -> Throughput:
    """Measure settings, in turns.

    The processes of a setting end with its turn, since those of all settings together may not fit into memory.
    Loading and the first file are not counted.

    Args:
        configuration: The configuration.
        settings: The settings, see `settings_for`.
        file_s: Length of each file of noise; a batch consists of windows of one file.
        rounds: Turns of each setting.
        progress: Called after each turn.

    Raises:
        BenchError: There are no settings, or a process cannot be started or failed.
    """
    if not settings:
        raise BenchError("there is no setting to measure: give at least one")
    model = configuration.file.metadata.name
    what = f"{model} on {configuration.name}: many files"
    times_s: dict[Setting, list[float]] = {setting: [] for setting in settings}
    memory: dict[Setting, int | None] = dict.fromkeys(settings, 0)
    for number in range(rounds):
        for place, setting in enumerate(settings):
            progress(what, number * len(settings) + place, rounds * len(settings))
            time_s, peak_bytes = _turn(configuration, setting, file_s)
            times_s[setting].append(time_s)
            most = memory[setting]
            memory[setting] = None if peak_bytes is None or most is None else max(peak_bytes, most)
    progress(what, rounds * len(settings), rounds * len(settings))
    rows = tuple(SettingRow(setting, tuple(times_s[setting]), memory[setting]) for setting in settings)
    return Throughput(model, configuration.name, file_s, rows)


def _turn(configuration: Configuration, setting: Setting, file_s: float) -> tuple[float, int | None]:
    options = configuration.options(setting.threads, setting.batch)
    with ExitStack() as stack:
        workers = [stack.enter_context(DenoiserProcess(configuration.name, options)) for _ in range(setting.workers)]
        _all_at_once(workers, file_s)
        time_s = _all_at_once(workers, file_s)
        peaks = [worker.peak_memory_bytes() for worker in workers]
    return time_s, None if None in peaks else sum(peak for peak in peaks if peak is not None)


def _all_at_once(workers: Sequence[DenoiserProcess], file_s: float) -> float:
    began = time.perf_counter()
    for worker in workers:
        worker.start(file_s)
    for worker in workers:
        worker.wait()
    return time.perf_counter() - began


def _per_file(row: SettingRow) -> list[float]:
    return [time_s / row.setting.workers for time_s in row.times_s]
