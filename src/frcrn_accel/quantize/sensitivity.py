"""Find the layer groups whose quantization costs most."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import NamedTuple

from frcrn_accel.backends import Backend
from frcrn_accel.errors import EngineError
from frcrn_accel.models import ModelFile
from frcrn_accel.progress import Progress
from frcrn_accel.quality import MAX_AGREEMENT_DB, agreement_db
from frcrn_accel.quantize.gate import GateReport
from frcrn_accel.quantize.parallel import plan_threads, workers
from frcrn_accel.quantize.recordings import denoise_clip, sample_numbers
from frcrn_accel.quantize.reference import Reference, load_parallel

__all__ = ["GroupCost", "Sensitivity"]

_SEARCH = "find layers to keep in float"
_AUDIO_S = 8.0  # audio to measure on; there are dozens of groups
_INEXACT = 0.1  # of the error of a set: how inexact the difference between it and one of its halves may be


@dataclass(frozen=True)
class GroupCost:
    """Cost of quantizing a single layer group.

    Attributes:
        group: The group.
        si_sdr_db: SI-SDR to the source's output with only this group quantized, mean over some clips; lower is worse.
    """

    group: str
    si_sdr_db: float


class _Set(NamedTuple):
    """Groups that the search for the costliest has not split yet, in the order in which it comes to them.

    Attributes:
        place: Its largest possible error, negative.
        order: Number of the set.
        groups: The groups.
        error: Energy of the error that these groups cause, as a share of the signal.
        is_known: Whether the error is known well enough to go on with.
    """

    place: float
    order: int
    groups: tuple[str, ...]
    error: float
    is_known: bool


class Sensitivity:
    """Measures the cost of groups: the SI-SDR to the source's output with only these groups quantized.

    Args:
        reference: The source and the clips. A few clips, spread over the list, are used: about 8 s.
        build_only: Returns the model with only these groups quantized, valid until the next call but one.
        backend: Returns the backend that these models run on.
        progress: Called as "sensitivity" for each group, and for the search of the worst.
    """

    def __init__(
        self,
        reference: Reference,
        build_only: Callable[[Sequence[str]], ModelFile],
        backend: Callable[[], Backend],
        progress: Progress,
    ) -> None:
        self._reference = reference
        self._build_only = build_only
        self._backend = backend
        self._progress = progress
        self._numbers = sample_numbers(reference.clips, _AUDIO_S)
        self._threads = plan_threads([len(reference.clips[number].noisy) for number in self._numbers])
        self._known: dict[tuple[str, ...], float] = {}

    def all(self, groups: Sequence[str]) -> tuple[GroupCost, ...]:
        """Measure each group alone; return the costs, the highest first."""
        self._progress("sensitivity", 0, len(groups))
        costs = []
        for group, si_sdr_db in zip(groups, self._measured((group,) for group in groups), strict=True):
            costs.append(GroupCost(group, si_sdr_db))
            self._progress("sensitivity", len(costs), len(groups))
        return tuple(sorted(costs, key=lambda cost: cost.si_sdr_db))

    def of(self, gate: GateReport | None) -> float:
        """Return the cost of all groups that a candidate quantizes, as the gate measured it, dB."""
        found = [clip.si_sdr_db for clip in gate.clips] if gate else []
        if len(found) < len(self._reference.clips):  # the candidate failed on a clip
            return -MAX_AGREEMENT_DB
        return statistics.fmean(found[number] for number in self._numbers)

    def worst(self, groups: Sequence[str], si_sdr_db: float) -> Iterator[GroupCost]:
        """Yield the costs of groups, the highest first, each measured when it is asked for.

        Several groups together cost at least as much as any of them. The costliest group is therefore found by
        bisection: the set of groups with the largest error is split, until it is a single group.

        The errors of different groups hardly correlate, so their energies add up, to each other and to the error
        that is left with all of these groups in float. Of the two halves of a set only the first is measured, and
        the error of the second is the difference. Once the search comes to the second half, it is measured, too, if
        it has less than half of the error, where a difference is inexact, or is a single group. With 48 groups this
        takes about 10 models.

        Args:
            groups: The groups.
            si_sdr_db: Cost of all of them together.
        """
        if not groups:
            return
        order = itertools.count()  # among equal errors, the first in the network's order comes first
        self._progress(_SEARCH, 0, 1)
        # The first half is needed next: it is loaded while the model before runs.
        others_db, *_ = self._measured(dict.fromkeys([(), tuple(groups[: len(groups) // 2])]))
        error_of_others = _energy(others_db)

        def measured(groups: tuple[str, ...], si_sdr_db: float) -> _Set:
            error = max(_energy(si_sdr_db) - error_of_others, 0.0)
            return _Set(-error, next(order), groups, error, is_known=True)

        sets = [measured(tuple(groups), si_sdr_db)]
        while sets:
            worst = heapq.heappop(sets)
            if not worst.is_known:
                heapq.heappush(sets, measured(worst.groups, self._measure(worst.groups)))
            elif len(worst.groups) == 1:
                self._progress(_SEARCH, 1, 1)
                yield GroupCost(worst.groups[0], self._measure(worst.groups))
                self._progress(_SEARCH, 0, 1)
            else:
                middle = len(worst.groups) // 2
                first = measured(worst.groups[:middle], self._measure(worst.groups[:middle]))
                rest = max(worst.error - first.error, 0.0)
                most = min(rest + _INEXACT * worst.error, worst.error)
                is_known = rest >= first.error and len(worst.groups) - middle > 1
                heapq.heappush(sets, first)
                heapq.heappush(sets, _Set(-most, next(order), worst.groups[middle:], rest, is_known))
        self._progress(_SEARCH, 1, 1)

    def _measure(self, groups: tuple[str, ...]) -> float:
        """Return the mean SI-SDR with only these groups quantized, dB."""
        (si_sdr_db,) = self._measured([groups])
        return si_sdr_db

    def _measured(self, sets: Iterable[tuple[str, ...]]) -> Iterator[float]:
        """Yield the mean SI-SDR with only the groups of a set quantized, dB, for each set.

        Each model is built and loaded while the one before runs.
        """
        with workers(self._threads.clips) as pool:
            before: Callable[[], float] | None = None
            for groups in sets:
                begun = self._begin(groups, pool)
                if before is not None:
                    yield before()
                before = begun
            if before is not None:
                yield before()

    def _begin(self, groups: tuple[str, ...], pool: ThreadPoolExecutor) -> Callable[[], float]:
        """Start to measure a set, unless it has been; return the function that waits for the result."""
        if groups in self._known:
            return lambda: self._known[groups]
        candidate = self._build_only(groups)
        session = load_parallel(self._backend(), candidate, self._threads)
        clips = [self._reference.clips[number] for number in self._numbers]
        runs = [pool.submit(denoise_clip, clip, session, candidate.metadata) for clip in clips]

        def finish() -> float:
            expected = [self._reference.output(number)[0] for number in self._numbers]
            try:
                found = [run.result() for run in runs]
                self._known[groups] = statistics.fmean(map(agreement_db, expected, found))
            except EngineError:
                self._known[groups] = -MAX_AGREEMENT_DB
            wait(runs)
            session.close()
            return self._known[groups]

        return finish


def _energy(si_sdr_db: float) -> float:
    """Return the energy of an error, as a share of the signal."""
    return float(10 ** (-si_sdr_db / 10))
