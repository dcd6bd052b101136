"""Many files: how many processes, threads and windows at a time get most of them through."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from frcrn_accel.bench.configurations import Variant
from frcrn_accel.bench.ratios import Ratio, times_faster
from frcrn_accel.errors import BenchError
from frcrn_accel.processes.process import Process
from frcrn_accel.progress import Progress, no_progress

__all__ = ["BATCHES", "Setting", "SettingRow", "Throughput", "measure_throughput", "settings_for"]

BATCHES = (1, 2, 4)


@dataclass(frozen=True)
class Setting:
    """How a machine is shared out.

    Attributes:
        workers: Processes, each with a file of its own.
        threads: CPU threads of each.
        batch: Windows of a file that go through the engine at a time.
    """

    workers: int
    threads: int
    batch: int

    def __str__(self) -> str:
        """For a person."""
        return f"{self.workers} worker(s) x {self.threads} thread(s), {self.batch} window(s) at a time"


@dataclass(frozen=True)
class SettingRow:
    """What was measured of one setting.

    Attributes:
        setting: The setting.
        times_s: From the start of all its workers to the end of the last, of each round.
        peak_memory_bytes: Of all its processes together; None where the system does not tell.
    """

    setting: Setting
    times_s: tuple[float, ...]
    peak_memory_bytes: int | None


@dataclass(frozen=True)
class Throughput:
    """The settings of one variant, measured in turns.

    Attributes:
        model: Name of the model.
        variant: Name of the variant.
        file_s: Length of each file.
        rows: What was measured.
    """

    model: str
    variant: str
    file_s: float
    rows: tuple[SettingRow, ...]

    def times_real_time(self, row: SettingRow) -> float:
        """Seconds of audio in a second."""
        return row.setting.workers * self.file_s / median(row.times_s)

    @property
    def best(self) -> SettingRow:
        """The setting that gets most through; of those that the noise does not let tell from it, the one in the least
        memory.
        """
        fastest = max(self.rows, key=self.times_real_time)
        alike = [row for row in self.rows if row is fastest or not self.times_faster(fastest, row).is_clear]
        return min(alike, key=lambda row: (row.peak_memory_bytes or 0, -self.times_real_time(row)))

    def times_faster(self, row: SettingRow, other: SettingRow) -> Ratio:
        """How many times more a setting gets through than another."""
        return times_faster(_per_file(row), _per_file(other))


def settings_for(cpus: int, batches: Sequence[int] = BATCHES) -> list[Setting]:
    """All CPUs, shared out among 1, 2, 4, ... workers, and one thread for each CPU."""
    workers = sorted({*(2**power for power in range(cpus.bit_length())), cpus})
    return [Setting(count, cpus // count, batch) for count in workers for batch in batches]


def measure_throughput(
    variant: Variant,
    settings: Sequence[Setting],
    *,
    file_s: float,
    rounds: int,
    progress: Progress = no_progress,
) -> Throughput:
    """Measure settings, in turns.

    The processes of a setting end with its turn: those of all settings together may not fit into memory. Loading and
    a first file do not count.

    Args:
        variant: What to run.
        settings: See `settings_for`.
        file_s: Length of each file of noise; windows of a file are what a batch is made of.
        rounds: How many turns each takes.
        progress: Told after each turn.

    Raises:
        BenchError: A process cannot be made, or failed.
    """
    if not settings:
        raise BenchError("no setting to measure: give at least one")
    model = variant.file.metadata.name
    what = f"{model} on {variant.name}: many files"
    times_s: dict[Setting, list[float]] = {setting: [] for setting in settings}
    memory: dict[Setting, int | None] = dict.fromkeys(settings, 0)
    for number in range(rounds):
        for place, setting in enumerate(settings):
            progress(what, number * len(settings) + place, rounds * len(settings))
            time_s, peak_bytes = _turn(variant, setting, file_s)
            times_s[setting].append(time_s)
            most = memory[setting]
            memory[setting] = None if peak_bytes is None or most is None else max(peak_bytes, most)
    progress(what, rounds * len(settings), rounds * len(settings))
    rows = tuple(SettingRow(setting, tuple(times_s[setting]), memory[setting]) for setting in settings)
    return Throughput(model, variant.name, file_s, rows)


def _turn(variant: Variant, setting: Setting, file_s: float) -> tuple[float, int | None]:
    options = {
        "model": str(variant.file.path),
        "backend": variant.backend,
        "precision": variant.precision,
        "threads": setting.threads,
        "batch_size": setting.batch,
    }
    with ExitStack() as stack:
        workers = [stack.enter_context(Process(variant.name, options)) for _ in range(setting.workers)]
        _all_at_once(workers, file_s)
        time_s = _all_at_once(workers, file_s)
        peaks = [worker.peak_memory_bytes() for worker in workers]
    return time_s, None if None in peaks else sum(peak for peak in peaks if peak is not None)


def _all_at_once(workers: Sequence[Process], file_s: float) -> float:
    began = time.perf_counter()
    for worker in workers:
        worker.start(file_s)
    for worker in workers:
        worker.wait()
    return time.perf_counter() - began


def _per_file(row: SettingRow) -> list[float]:
    return [time_s / row.setting.workers for time_s in row.times_s]
