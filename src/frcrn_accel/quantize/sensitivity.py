"""Find the layer groups whose quantization costs most."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from frcrn_accel.backends import Backend
from frcrn_accel.errors import EngineError
from frcrn_accel.models import ModelFile
from frcrn_accel.progress import Progress
from frcrn_accel.quality import MAX_AGREEMENT_DB, agreement_db
from frcrn_accel.quantize.gate import GateReport
from frcrn_accel.quantize.parallel import map_parallel, plan_threads, workers
from frcrn_accel.quantize.recordings import denoise_clip, sample_numbers
from frcrn_accel.quantize.reference import Reference, load_parallel

__all__ = ["GroupCost", "Sensitivity"]

_SEARCH = "find layers to keep in float"
_AUDIO_S = 8.0  # audio to measure on; there are dozens of groups


@dataclass(frozen=True)
class GroupCost:
    """Cost of quantizing a single layer group.

    Attributes:
        group: The group.
        si_sdr_db: SI-SDR to the source's output with only this group quantized, mean over some clips; lower is worse.
    """

    group: str
    si_sdr_db: float


class Sensitivity:
    """Measures the cost of groups: the SI-SDR to the source's output with only these groups quantized.

    Args:
        reference: The source and the clips. A few clips, spread over the list, are used: about 8 s.
        build_only: Returns the model with only these groups quantized, valid until the next call.
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
        self._known: dict[str, float] = {}

    def all(self, groups: Sequence[str]) -> tuple[GroupCost, ...]:
        """Measure each group alone; return the costs, the highest first."""
        for done, group in enumerate(groups):
            self._progress("sensitivity", done, len(groups))
            self._alone(group)
        self._progress("sensitivity", len(groups), len(groups))
        return tuple(sorted((self._alone(group) for group in groups), key=lambda cost: cost.si_sdr_db))

    def of(self, gate: GateReport | None) -> float:
        """Return the cost of all groups that a candidate quantizes, as the gate measured it, dB."""
        found = [clip.si_sdr_db for clip in gate.clips] if gate else []
        if len(found) < len(self._reference.clips):  # the candidate failed on a clip
            return -MAX_AGREEMENT_DB
        return statistics.fmean(found[number] for number in self._numbers)

    def worst(self, groups: Sequence[str], si_sdr_db: float) -> Iterator[GroupCost]:
        """Yield the costs of groups, the highest first, each measured when it is asked for.

        Several groups together cost at least as much as any of them. The costliest group is therefore found by
        bisection: the set of groups with the largest error is split, until it is a single group. With 48 groups this
        takes about 20 models.

        Args:
            groups: The groups.
            si_sdr_db: Cost of all of them together.
        """
        order = itertools.count()  # among equal errors, the first in the network's order comes first
        sets = [(si_sdr_db, next(order), tuple(groups))] if groups else []
        self._progress(_SEARCH, 0, 1)
        while sets:
            _, _, worst = heapq.heappop(sets)
            if len(worst) == 1:
                self._progress(_SEARCH, 1, 1)
                yield self._alone(worst[0])
                self._progress(_SEARCH, 0, 1)
                continue
            for half in (worst[: len(worst) // 2], worst[len(worst) // 2 :]):
                cost_db = self._alone(half[0]).si_sdr_db if len(half) == 1 else self._measure(half)
                heapq.heappush(sets, (cost_db, next(order), half))
        self._progress(_SEARCH, 1, 1)

    def _alone(self, group: str) -> GroupCost:
        if group not in self._known:
            self._known[group] = self._measure([group])
        return GroupCost(group, self._known[group])

    def _measure(self, groups: Sequence[str]) -> float:
        """Return the mean SI-SDR with only these groups quantized, dB."""
        clips = [self._reference.clips[number] for number in self._numbers]
        threads = plan_threads([len(clip.noisy) for clip in clips])
        expected = [self._reference.output(number)[0] for number in self._numbers]
        candidate = self._build_only(groups)
        session = load_parallel(self._backend(), candidate, threads)
        try:
            with workers(threads.clips) as pool:
                found = map_parallel(lambda clip: denoise_clip(clip, session, candidate.metadata), clips, pool)
        except EngineError:
            return -MAX_AGREEMENT_DB
        finally:
            session.close()
        return statistics.fmean(map(agreement_db, expected, found))
