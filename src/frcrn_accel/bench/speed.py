"""Measure time, memory and size of the configurations of a model, in turns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median

import numpy as np

from frcrn_accel.bench.configurations import Configuration, LeftOut
from frcrn_accel.bench.ratios import Ratio, spread_percent, times_faster
from frcrn_accel.bench.sound import Outputs, Quality, compare_quality
from frcrn_accel.cpu import busy_cpu_s
from frcrn_accel.errors import BenchError
from frcrn_accel.processes import DenoiserProcess, Loaded, Run
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality.clips import Clip

__all__ = ["Group", "Row", "loadable", "measure_group", "reference_of"]

_WARM_UPS = 1  # after the first call; some engines settle buffers in the second run of a shape
# After a run, threads of an engine spin for a while before they sleep. The pause lets them sleep by the next turn.
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Row:
    """The measurements of one configuration.

    Attributes:
        configuration: Name of the configuration.
        backend: Name of the backend.
        precision: Number format that it computed in.
        device: Device that it ran on, as reported by the engine.
        file_bytes: Size of the model file.
        load_s: Time to import the library and the engine and to load the model.
        first_s: Time of the first call.
        times_s: Time of each turn after the warm-up.
        cpu_s: CPU time of each turn, summed over all CPUs.
        idle_cpu_s: CPU time during the turns of others, summed over all CPUs; median over the rounds.
        peak_memory_bytes: Peak memory of its process over loading and all turns, Python included; None on systems
            that do not report it.
        quality: The sound of its output; None if it was not measured.
    """

    configuration: str
    backend: str
    precision: str
    device: str
    file_bytes: int
    load_s: float
    first_s: float
    times_s: tuple[float, ...]
    cpu_s: tuple[float, ...]
    idle_cpu_s: float
    peak_memory_bytes: int | None
    quality: Quality | None = None

    @property
    def median_s(self) -> float:
        """Median time of a turn."""
        return median(self.times_s)

    @property
    def p95_s(self) -> float:
        """95th percentile of the time of a turn; with few turns it is close to the longest."""
        return float(np.quantile(self.times_s, 0.95))


@dataclass(frozen=True)
class Group:
    """Configurations that took turns, with the same model, length and threads.

    Attributes:
        model: Name of the model.
        channels: Complex channels of the network.
        unets: U-Nets of the network.
        random_weights: Whether its weights are random, so that its output is meaningless.
        length_s: Length of the clip.
        threads: CPU threads of each configuration that computes on the CPU.
        rows: The measurements, in the order of the turns.
        other_cpus: CPUs that other work kept busy during the rounds, on average; None on systems that do not report
            it.
    """

    model: str
    channels: int
    unets: int
    random_weights: bool
    length_s: float
    threads: int
    rows: tuple[Row, ...]
    other_cpus: float | None = None

    @property
    def noise_percent(self) -> float:
        """Noise of the machine: the median over the rows of `spread_percent`."""
        return median(spread_percent(row.times_s) for row in self.rows)

    def times_faster(self, row: Row, baseline: str) -> Ratio | None:
        """Return how many times faster a row is than a baseline; None if the baseline is not in this group."""
        for other in self.rows:
            if other.configuration == baseline:
                return times_faster(row.times_s, other.times_s)
        return None

    def alike(self) -> list[tuple[str, str, Ratio]]:
        """Return pairs of configurations whose difference is not larger than the noise, the faster one first."""
        ranked = sorted(self.rows, key=lambda row: row.median_s)
        pairs = []
        for place, fast in enumerate(ranked):
            for slow in ranked[place + 1 :]:
                ratio = times_faster(fast.times_s, slow.times_s)
                if not ratio.is_clear:
                    pairs.append((fast.configuration, slow.configuration, ratio))
        return pairs


def loadable(
    configurations: Sequence[Configuration], threads: int, progress: Progress = no_progress
) -> tuple[list[Configuration], list[LeftOut]]:
    """Load each configuration once before measuring, so that files that backends make at first use are cached.

    Args:
        configurations: All configurations.
        threads: CPU threads.
        progress: Called before each is loaded.

    Returns:
        Those that can be loaded, and those that cannot.

    Raises:
        BenchError: None can be loaded.
    """
    able: list[Configuration] = []
    left_out: list[LeftOut] = []
    for count, configuration in enumerate(configurations):
        name = configuration.name
        progress(f"{configuration.file.metadata.name}: trying out", count + 1, len(configurations))
        try:
            DenoiserProcess(name, configuration.options(threads)).close()
            able.append(configuration)
        except BenchError as error:
            left_out.append(LeftOut(name, str(error).removeprefix(f"{name}: ")))
    if not able:
        raise BenchError(f"no configuration can be loaded: {'; '.join(each.reason for each in left_out)}")
    return able, left_out


def measure_group(
    configurations: Sequence[Configuration],
    *,
    length_s: float,
    threads: int,
    rounds: int,
    random_weights: bool = False,
    quality: Sequence[Clip] | None = None,
    progress: Progress = no_progress,
) -> Group:
    """Measure configurations of one model.

    Each runs in a process of its own, so that loading and memory can be measured: in one process, engines would share
    libraries (one onnxruntime for several backends, one OpenMP for several engines) and allocators. They take turns,
    A B C A B C ..., so that disturbances of the machine affect all of them.

    Args:
        configurations: The configurations.
        length_s: Length of the clip of noise.
        threads: CPU threads of each.
        rounds: Turns of each.
        random_weights: Whether the weights of the model are random.
        quality: Speech in noise, at 16 kHz, on which outputs are compared; None to measure time only.
        progress: Called after each step.

    Raises:
        BenchError: A configuration cannot be loaded, or failed.
    """
    metadata = configurations[0].file.metadata
    title = f"{metadata.name}, {length_s:g} s, {threads} thread(s)"
    with ExitStack() as stack:
        running: dict[Configuration, DenoiserProcess] = {}
        for configuration in configurations:
            progress(f"{title}: loading", len(running) + 1, len(configurations))
            process = DenoiserProcess(configuration.name, configuration.options(threads))
            running[configuration] = stack.enter_context(process)
        first = {configuration: _turn(process, length_s) for configuration, process in running.items()}
        turns: dict[Configuration, list[Run]] = {configuration: [] for configuration in running}
        for process in [*running.values()] * _WARM_UPS:
            _turn(process, length_s)
        others = _OtherWork()
        for number in range(rounds):
            for configuration, process in running.items():
                turns[configuration].append(_turn(process, length_s))
            progress(f"{title}: rounds", number + 1, rounds)
        other_cpus = others.cpus(chain.from_iterable(turns.values()))
        rows = {
            each: _row(each, process.loaded, first[each], turns[each], process.peak_memory_bytes())
            for each, process in running.items()
        }
        outputs = {} if quality is None else _outputs(running, quality, progress, title)
    reference = reference_of(configurations)
    if quality is not None and reference is not None:  # all engines have ended by now
        scored = compare_quality(
            outputs, reference, quality, lambda done, total: progress(f"{title}: scoring", done, total)
        )
        rows = {each: replace(row, quality=scored[each.name]) for each, row in rows.items()}
    return Group(
        metadata.name,
        metadata.channels,
        metadata.unets,
        random_weights,
        length_s,
        threads,
        tuple(rows.values()),
        other_cpus,
    )


class _OtherWork:
    """Other work of the machine, measured from the creation of the object on."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._busy_s = busy_cpu_s()
        self._process_s = time.process_time()

    def cpus(self, runs: Iterable[Run]) -> float | None:
        """Return the CPUs that were busy with other work, on average; None on systems that do not report it.

        Args:
            runs: All runs of the benchmark's own processes.
        """
        busy_s = busy_cpu_s()
        if busy_s is None or self._busy_s is None:
            return None
        own_s = time.process_time() - self._process_s + sum(run.cpu_s + run.idle_cpu_s for run in runs)
        return max(0.0, (busy_s - self._busy_s - own_s) / (time.perf_counter() - self._began_s))


def reference_of(configurations: Sequence[Configuration]) -> str | None:
    """Return the name of the configuration that the others' output is compared with: `ort`, or another in fp32."""
    names = [configuration.name for configuration in configurations if configuration.precision == "fp32"]
    return "ort" if "ort" in names else next(iter(names), None)


def _turn(process: DenoiserProcess, length_s: float) -> Run:
    time.sleep(_PAUSE_S)
    return process.run(length_s)


def _row(
    configuration: Configuration, loaded: Loaded, first: Run, turns: Sequence[Run], peak_memory_bytes: int | None
) -> Row:
    return Row(
        configuration=configuration.name,
        backend=loaded.backend,
        precision=loaded.precision,
        device=loaded.device,
        file_bytes=configuration.file.path.stat().st_size,
        load_s=loaded.load_s,
        first_s=first.wall_s,
        times_s=tuple(run.wall_s for run in turns),
        cpu_s=tuple(run.cpu_s for run in turns),
        idle_cpu_s=median(run.idle_cpu_s for run in turns),
        peak_memory_bytes=peak_memory_bytes,
    )


def _outputs(
    running: Mapping[Configuration, DenoiserProcess], clips: Sequence[Clip], progress: Progress, title: str
) -> Mapping[str, Outputs]:
    """Denoise the clips with each configuration."""
    outputs: dict[str, Outputs] = {}
    for count, (configuration, process) in enumerate(running.items()):
        progress(f"{title}: denoising", count, len(running))
        outputs[configuration.name] = [process.denoise(clip.noisy) for clip in clips]
    progress(f"{title}: denoising", len(running), len(running))
    return outputs
