"""The quality gate: compare a quantized model with its source on speech in noise."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from frcrn_accel.backends import Backend, Session
from frcrn_accel.errors import EngineError, QuantizeError
from frcrn_accel.models import ModelFile
from frcrn_accel.progress import Progress
from frcrn_accel.quality import MAX_AGREEMENT_DB, agreement_db
from frcrn_accel.quality.clips import Clip
from frcrn_accel.quantize.recordings import sample_numbers
from frcrn_accel.quantize.reference import (
    DNSMOS,
    PESQ,
    Output,
    Reference,
    denoise_timed,
    load_parallel,
    rate,
    warm_up,
)

__all__ = ["ClipResult", "GateReport", "GateThresholds", "Measure", "compare"]

SI_SDR = "SI-SDR to the source's output"

# A candidate that is to improve on the first one is refused after a part of the clips if it is this far below the
# limit: the clips of the first one show how the mean of all of them differs from that of the part.
_TRIAL_SHARE = 0.25
_LEAST_TRIAL_S = 8.0
_HOPELESS_DB = 2.0


@dataclass(frozen=True)
class GateThresholds:
    """Limits on how far a quantized model may be from its source.

    Attributes:
        max_pesq_drop_percent: Largest drop of the mean PESQ-WB, percent.
        min_si_sdr_db: Smallest mean SI-SDR of its output to the source's output, dB.
        max_dnsmos_drop: Largest drop of the mean DNSMOS OVRL, points.

    Raises:
        QuantizeError: A limit is not a number, a drop is negative, or the SI-SDR is -120 dB or less.
    """

    max_pesq_drop_percent: float = 1.0
    min_si_sdr_db: float = 30.0
    max_dnsmos_drop: float = 0.03

    def __post_init__(self) -> None:
        """Check the limits."""
        # A model without output gets the lowest SI-SDR: no limit may let it pass.
        drops = (self.max_pesq_drop_percent, self.max_dnsmos_drop)
        if not (all(drop >= 0 for drop in drops) and self.min_si_sdr_db > -MAX_AGREEMENT_DB):
            raise QuantizeError(f"drops must be 0 or more, and the SI-SDR above {-MAX_AGREEMENT_DB:g} dB, got {self}")


@dataclass(frozen=True)
class Measure:
    """A metric and its limit.

    Attributes:
        metric: Name of the metric.
        source: Mean of the source; None for SI-SDR, which compares the two models directly.
        candidate: Mean of the quantized model; None for SI-SDR.
        value: Value that the limit applies to: the SI-SDR between the two in dB, or a change in percent or points.
            None if it was not measured.
        limit: Smallest `value` that passes.
        unit: Unit of `value` and `limit`.
        clips: Number of clips in the mean.
        note: Why it was not measured, or what failed; else empty.
    """

    metric: str
    source: float | None
    candidate: float | None
    value: float | None
    limit: float
    unit: str
    clips: int
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether the value is within its limit; None if it was not measured."""
        return None if self.value is None else self.value >= self.limit


@dataclass(frozen=True)
class ClipResult:
    """Measurements on one clip; None for a metric that was not measured.

    Attributes:
        name: Name of the clip.
        duration_s: Duration of the clip.
        si_sdr_db: SI-SDR of the quantized model's output to the source's, see `quality.agreement_db`.
        pesq_source, pesq_candidate: PESQ-WB of the two outputs.
        dnsmos_source, dnsmos_candidate: DNSMOS OVRL of the two outputs.
        source_s, candidate_s: Computing times of the two models.
    """

    name: str
    duration_s: float
    si_sdr_db: float
    pesq_source: float | None
    pesq_candidate: float | None
    dnsmos_source: float | None
    dnsmos_candidate: float | None
    source_s: float
    candidate_s: float


@dataclass(frozen=True)
class GateReport:
    """Comparison of a quantized model with its source.

    Attributes:
        measures: The metrics with their limits.
        clips: Results of each clip.
        source_device, candidate_device: Backend and device of each model.
        source_real_time_factor, candidate_real_time_factor: Computing time over duration, medians over the clips,
            with the threads that `parallel.plan_threads` gives each clip: one, unless clips are long. None if the
            quantized model failed on the first clip.
        speedup: Computing time of the source over that of the quantized model, median over the clips.
    """

    measures: tuple[Measure, ...]
    clips: tuple[ClipResult, ...]
    source_device: str
    candidate_device: str
    source_real_time_factor: float | None
    candidate_real_time_factor: float | None
    speedup: float | None

    @property
    def passed(self) -> bool:
        """Whether all metrics that were measured are within their limits."""
        return all(measure.passed is not False for measure in self.measures)


def compare(
    reference: Reference,
    candidate: ModelFile,
    backend: Callable[[], Backend],
    thresholds: GateThresholds,
    pool: ThreadPoolExecutor,
    progress: Progress,
    *,
    complete: bool = True,
    first: GateReport | None = None,
) -> GateReport:
    """Run a quantized model on all clips and compare its outputs with those of the source.

    Args:
        reference: The source and the clips.
        candidate: The quantized model.
        backend: Returns the backend that the quantized model runs on.
        thresholds: The limits.
        pool: Threads, as many as the reference plans. Scores of the source that are not needed for this model may go
            on there, for the next one.
        progress: Called after each clip, as "gate", and after each score of the quantized model, as "score".
        complete: Whether to take all measures even if the model misses a limit already. DNSMOS takes the most time.
        first: Report of the candidate that this one is to improve on, with the same reference. The model is then
            refused after some of the clips if its SI-SDR is far too low. None to run all clips.

    Raises:
        BackendUnavailable: A backend cannot run here.
        ModelError: The backend cannot load the quantized model.
        EngineError: The source failed. (A failure of the quantized model is part of the report.)
    """
    clips = reference.clips
    progress("gate", 0, len(clips))
    engine = backend()
    with reference.places:
        sources = reference.begin(pool)  # while the candidate is loaded
        session = load_parallel(engine, candidate, reference.threads)
    outputs: dict[int, Output] = {}
    agreements: dict[int, float] = {}
    failure = ""

    def run(numbers: Iterable[int]) -> None:
        nonlocal failure
        runs = {number: pool.submit(_run, reference, session, candidate, clips[number]) for number in numbers}
        try:
            for number, begun in runs.items():
                sources[number].result()
                outcome = begun.result()
                if isinstance(outcome, EngineError):
                    failure = f"on {clips[number].name}: {outcome}"
                    break
                outputs[number] = outcome
                agreements[number] = agreement_db(reference.output(number)[0], outcome[0])
                progress("gate", len(outputs), len(clips))
        finally:
            for begun in runs.values():
                begun.cancel()
            wait(runs.values())

    try:
        tried: Sequence[int] = ()
        if first is not None and len(first.clips) == len(clips):
            tried = sample_numbers(clips, max(_LEAST_TRIAL_S, _TRIAL_SHARE * sum(clip.duration_s for clip in clips)))
            run(tried)
        if not (failure or (first and tried and _is_hopeless(agreements, first, thresholds))):
            run(number for number in range(len(clips)) if number not in tried)
    finally:
        candidate_device = f"{engine.name}: {session.device}"
        session.close()
    scores = _Scores(reference, outputs, pool, progress)

    def goes_on() -> bool:
        found = _measures(agreements, scores, thresholds, failure)
        return complete or not any(measure.passed is False for measure in found)

    try:
        if goes_on():
            scores.add_pesq()
        if goes_on():
            scores.add_dnsmos()
    finally:
        scores.drop_waiting()
    results = [
        ClipResult(
            name=clips[number].name,
            duration_s=clips[number].duration_s,
            si_sdr_db=agreements[number],
            pesq_source=scores.of(PESQ, number)[0],
            pesq_candidate=scores.of(PESQ, number)[1],
            dnsmos_source=scores.of(DNSMOS, number)[0],
            dnsmos_candidate=scores.of(DNSMOS, number)[1],
            source_s=reference.output(number)[1],
            candidate_s=candidate_s,
        )
        for number, (_, candidate_s) in sorted(outputs.items())
    ]
    return GateReport(
        measures=_measures(agreements, scores, thresholds, failure),
        clips=tuple(results),
        source_device=reference.device,
        candidate_device=candidate_device,
        source_real_time_factor=_median(result.source_s / result.duration_s for result in results),
        candidate_real_time_factor=_median(result.candidate_s / result.duration_s for result in results),
        speedup=_median(result.source_s / result.candidate_s for result in results),
    )


def _run(reference: Reference, session: Session, candidate: ModelFile, clip: Clip) -> Output | EngineError:
    """Return the output of the quantized model for a clip, or its failure."""
    try:
        with reference.places:
            if clip is reference.clips[0]:
                warm_up(clip, session, candidate)
            return denoise_timed(clip, session, candidate)
    except EngineError as error:
        return error


def _is_hopeless(agreements: Mapping[int, float], first: GateReport, thresholds: GateThresholds) -> bool:
    """Return whether the SI-SDR on some clips is so low that the mean of all clips will not reach the limit."""
    found = statistics.fmean(agreements.values())
    first_on_these = statistics.fmean(first.clips[number].si_sdr_db for number in agreements)
    first_on_all = statistics.fmean(clip.si_sdr_db for clip in first.clips)
    return max(found, found - first_on_these + first_on_all) < thresholds.min_si_sdr_db - _HOPELESS_DB


class _Scores:
    """Scores of both models on the clips that the quantized model denoised.

    PESQ holds Python's lock, so that several threads take as long as one, and hinder the others. The calling thread
    computes it, and DNSMOS is begun beside it in other threads.
    """

    def __init__(
        self, reference: Reference, outputs: Mapping[int, Output], pool: ThreadPoolExecutor, progress: Progress
    ) -> None:
        self._reference = reference
        self._outputs = outputs
        self._pool = pool
        self._progress = progress
        self._pairs: dict[str, dict[int, tuple[float, float] | None]] = {}
        self._begun: dict[int, Future[tuple[float, float] | None]] = {}
        # No candidate gets into place without those of the source: they go on even if this one is refused.
        for number in range(len(reference.clips)):
            pool.submit(reference.score, DNSMOS, number)

    def add_pesq(self) -> None:
        """Score all clips with PESQ; begin to score them with DNSMOS."""
        self._begun = {number: self._pool.submit(self._pair, DNSMOS, number) for number in self._outputs}
        if any(clip.clean is not None for clip in self._reference.clips):
            self._add(PESQ, lambda number: self._pair(PESQ, number))

    def add_dnsmos(self) -> None:
        """Wait until all clips are scored with DNSMOS."""
        self._add(DNSMOS, lambda number: self._begun[number].result())

    def drop_waiting(self) -> None:
        """Drop the scores of the quantized model that have not begun."""
        for begun in self._begun.values():
            begun.cancel()

    def _add(self, metric: str, pair_of: Callable[[int], tuple[float, float] | None]) -> None:
        found = self._pairs.setdefault(metric, {})
        for number in self._outputs:
            found[number] = pair_of(number)
            if metric not in self._reference.scorer.notes:  # a skipped metric takes no time
                self._progress("score", len(found), len(self._outputs))

    def of(self, metric: str, number: int) -> tuple[float | None, float | None]:
        """Return the scores of the source and of the quantized model for a clip; None for both if one has none."""
        return self._pairs.get(metric, {}).get(number) or (None, None)

    def pairs(self, metric: str) -> list[tuple[float, float]]:
        """Return the scores of all clips that have both."""
        return [pair for pair in self._pairs.get(metric, {}).values() if pair is not None]

    def note(self, metric: str) -> str:
        """Return why there are no scores."""
        without = "no clip with clean speech" if metric == PESQ else "no clip could be scored"
        return self._reference.scorer.notes.get(metric, without)

    def _pair(self, metric: str, number: int) -> tuple[float, float] | None:
        source = self._reference.score(metric, number)
        if source is None:
            return None
        output, _ = self._outputs[number]
        candidate = rate(metric, self._reference.clips[number], output, self._reference.scorer)
        return None if candidate is None else (source, candidate)


def _measures(
    agreements: Mapping[int, float], scores: _Scores, thresholds: GateThresholds, failure: str
) -> tuple[Measure, ...]:
    agreement = statistics.fmean(agreements.values()) if agreements else None
    measures = [
        Measure(
            metric=SI_SDR,
            source=None,
            candidate=None,
            value=-MAX_AGREEMENT_DB if failure else agreement,
            limit=thresholds.min_si_sdr_db,
            unit="dB",
            clips=len(agreements),
            note=failure,
        )
    ]
    for metric, limit, unit in (
        (PESQ, -thresholds.max_pesq_drop_percent, "%"),
        (DNSMOS, -thresholds.max_dnsmos_drop, "points"),
    ):
        pairs = scores.pairs(metric)
        if not pairs:
            measures.append(Measure(metric, None, None, None, limit, unit, 0, scores.note(metric)))
            continue
        source, candidate = (statistics.fmean(column) for column in zip(*pairs, strict=True))
        change = 100 * (candidate / source - 1) if unit == "%" else candidate - source
        measures.append(Measure(metric, source, candidate, change, limit, unit, len(pairs)))
    return tuple(measures)


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None
