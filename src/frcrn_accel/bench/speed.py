"""Time, memory and size of the variants of a model, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from statistics import median

import numpy as np

from frcrn_accel.bench.configurations import LeftOut, Variant
from frcrn_accel.bench.ratios import Ratio, spread_percent, times_faster
from frcrn_accel.bench.sound import Outputs, Quality, compare_quality
from frcrn_accel.cpu import busy_cpu_s
from frcrn_accel.errors import BenchError
from frcrn_accel.processes.process import Loaded, Process, Run
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality.clips import Clip

__all__ = ["Group", "Row", "loadable", "measure_group", "reference_of"]

_WARM_UPS = 1  # after the first call: some engines settle buffers at the second run of a shape
# Threads of an engine that has just run look out for more work for a while before they sleep. The next one's turn
# begins when they do.
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Row:
    """What was measured of one variant.

    Attributes:
        variant: Its name.
        backend: Name of the backend.
        precision: The number format it computed in.
        device: What it ran on, asked of the engine.
        file_bytes: Size of the model file.
        load_s: Time of importing the library and the engine and of loading the model.
        first_s: Time of the first call.
        times_s: Time of each turn after the warm-up.
        cpu_s: Time of all CPUs in each turn.
        idle_cpu_s: Time of all CPUs that it took while others had their turn, median of a round.
        peak_memory_bytes: Of its process, Python and the engine in it, over loading and all turns; None where the
            system does not tell.
        quality: What it does to the sound; None if that was not measured.
    """

    variant: str
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
        """95th percentile of the time of a turn; of few turns it is near the longest."""
        return float(np.quantile(self.times_s, 0.95))


@dataclass(frozen=True)
class Group:
    """Variants that took turns: the same model, length and threads.

    Attributes:
        model: Name of the model.
        channels: Of the network.
        unets: Of the network.
        random_weights: Whether it has no sound.
        length_s: Of the clip.
        threads: CPU threads of each variant.
        rows: What was measured, in the order of the turns.
        other_cpus: CPUs that other work kept busy during the rounds, on average; None where the system does not tell.
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
        """How many times faster than a baseline; None if that one is not here."""
        for other in self.rows:
            if other.variant == baseline:
                return times_faster(row.times_s, other.times_s)
        return None

    def alike(self) -> list[tuple[str, str, Ratio]]:
        """Pairs of variants that the noise does not let tell apart, the faster one first."""
        ranked = sorted(self.rows, key=lambda row: row.median_s)
        pairs = []
        for place, fast in enumerate(ranked):
            for slow in ranked[place + 1 :]:
                ratio = times_faster(fast.times_s, slow.times_s)
                if not ratio.is_clear:
                    pairs.append((fast.variant, slow.variant, ratio))
        return pairs


def loadable(
    variants: Sequence[Variant], threads: int, progress: Progress = no_progress
) -> tuple[list[Variant], list[LeftOut]]:
    """Load each variant once before it counts: what a backend makes of a model at its first use is cached then.

    Args:
        variants: All.
        threads: CPU threads.
        progress: Told before each.

    Returns:
        Those that can be loaded, and those that cannot.

    Raises:
        BenchError: None can.
    """
    able: list[Variant] = []
    left_out: list[LeftOut] = []
    for count, variant in enumerate(variants):
        progress(f"{variant.file.metadata.name}: trying out", count + 1, len(variants))
        try:
            Process(variant.name, _options(variant, threads)).close()
            able.append(variant)
        except BenchError as error:
            left_out.append(LeftOut(variant.name, str(error).removeprefix(f"{variant.name}: ")))
    if not able:
        raise BenchError(f"no variant can be loaded: {'; '.join(one.reason for one in left_out)}")
    return able, left_out


def measure_group(
    variants: Sequence[Variant],
    *,
    length_s: float,
    threads: int,
    rounds: int,
    random_weights: bool = False,
    quality: Sequence[Clip] | None = None,
    progress: Progress = no_progress,
) -> Group:
    """Measure variants of one model.

    Each lives in a process of its own, and so do its memory and its loading; two engines in one process would share
    libraries (one onnxruntime for several backends, one OpenMP for several engines) and allocators. They take turns,
    A B C A B C ..., so that what else happens on the machine meets them all.

    Args:
        variants: What to measure.
        length_s: Of the clip of noise.
        threads: CPU threads for each.
        rounds: How many turns each takes.
        random_weights: Whether the model has no sound.
        quality: Speech in noise, at 16 kHz, to compare their outputs on; None to leave that out.
        progress: Told of each step.

    Raises:
        BenchError: One cannot be loaded, or failed.
    """
    metadata = variants[0].file.metadata
    title = f"{metadata.name}, {length_s:g} s, {threads} thread(s)"
    with ExitStack() as stack:
        running: dict[Variant, Process] = {}
        for variant in variants:
            progress(f"{title}: loading", len(running) + 1, len(variants))
            running[variant] = stack.enter_context(Process(variant.name, _options(variant, threads)))
        first = {variant: _turn(process, length_s) for variant, process in running.items()}
        turns: dict[Variant, list[Run]] = {variant: [] for variant in running}
        for process in [*running.values()] * _WARM_UPS:
            _turn(process, length_s)
        others = _OtherWork()
        for number in range(rounds):
            for variant, process in running.items():
                turns[variant].append(_turn(process, length_s))
            progress(f"{title}: rounds", number + 1, rounds)
        other_cpus = others.cpus(chain.from_iterable(turns.values()))
        rows = {
            variant: _row(variant, process.loaded, first[variant], turns[variant], process.peak_memory_bytes())
            for variant, process in running.items()
        }
        outputs = {} if quality is None else _outputs(running, quality, progress, title)
    reference = reference_of(variants)
    if quality is not None and reference is not None:  # all engines are gone now
        scored = compare_quality(
            outputs, reference, quality, lambda done, total: progress(f"{title}: scoring", done, total)
        )
        rows = {variant: replace(row, quality=scored[variant.name]) for variant, row in rows.items()}
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
    """What the machine does beside the benchmark, from now on."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter()
        self._busy_s = busy_cpu_s()
        self._process_s = time.process_time()

    def cpus(self, runs: Iterable[Run]) -> float | None:
        """CPUs that were busy with it, on average; None where the system does not tell.

        Args:
            runs: All that the benchmark's own processes did.
        """
        busy_s = busy_cpu_s()
        if busy_s is None or self._busy_s is None:
            return None
        own_s = time.process_time() - self._process_s + sum(run.cpu_s + run.idle_cpu_s for run in runs)
        return max(0.0, (busy_s - self._busy_s - own_s) / (time.perf_counter() - self._began_s))


def reference_of(variants: Sequence[Variant]) -> str | None:
    """The one whose output is held to be the right one: `ort`, or another in fp32; None without any."""
    names = [variant.name for variant in variants if variant.precision == "fp32"]
    return "ort" if "ort" in names else next(iter(names), None)


def _options(variant: Variant, threads: int) -> dict[str, object]:
    return {
        "model": str(variant.file.path),
        "backend": variant.backend,
        "precision": variant.precision,
        "threads": threads,
    }


def _turn(process: Process, length_s: float) -> Run:
    time.sleep(_PAUSE_S)
    return process.run(length_s)


def _row(variant: Variant, loaded: Loaded, first: Run, turns: Sequence[Run], peak_memory_bytes: int | None) -> Row:
    return Row(
        variant=variant.name,
        backend=loaded.backend,
        precision=loaded.precision,
        device=loaded.device,
        file_bytes=variant.file.path.stat().st_size,
        load_s=loaded.load_s,
        first_s=first.wall_s,
        times_s=tuple(run.wall_s for run in turns),
        cpu_s=tuple(run.cpu_s for run in turns),
        idle_cpu_s=median(run.idle_cpu_s for run in turns),
        peak_memory_bytes=peak_memory_bytes,
    )


def _outputs(
    running: Mapping[Variant, Process], clips: Sequence[Clip], progress: Progress, title: str
) -> Mapping[str, Outputs]:
    """What each makes of the audio."""
    outputs: dict[str, Outputs] = {}
    for count, (variant, process) in enumerate(running.items()):
        progress(f"{title}: denoising", count, len(running))
        outputs[variant.name] = [process.denoise(clip.noisy) for clip in clips]
    progress(f"{title}: denoising", len(running), len(running))
    return outputs
