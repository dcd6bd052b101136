"""The quality gate: compare a quantized model with its source on speech in noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import Backend, Session
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.errors import EngineError, QuantizeError
from frcrn_accel.models import ModelFile
from frcrn_accel.progress import Progress
from frcrn_accel.quality import MAX_AGREEMENT_DB, Scorer, agreement_db, dnsmos, pesq_wb
from frcrn_accel.quality.clips import Clip
from frcrn_accel.quantize.recordings import denoise_clip

__all__ = [
    "ClipResult",
    "GateReport",
    "GateThresholds",
    "GroupCost",
    "Measure",
    "compare",
    "measure_sensitivity",
]

SI_SDR = "SI-SDR to the source's output"
PESQ = "PESQ-WB"
DNSMOS = "DNSMOS OVRL"


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
        source_real_time_factor, candidate_real_time_factor: Computing time over duration, medians over the clips. The
            two models take turns. None if the quantized model failed on the first clip.
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


@dataclass(frozen=True)
class GroupCost:
    """Cost of quantizing a single layer group.

    Attributes:
        group: The group.
        si_sdr_db: SI-SDR to the source's output with only this group quantized, mean over some clips; lower is worse.
    """

    group: str
    si_sdr_db: float


def compare(
    source: ModelFile,
    candidate: ModelFile,
    backend: Callable[[], Backend],
    clips: Sequence[Clip],
    thresholds: GateThresholds,
    progress: Progress,
) -> GateReport:
    """Run both models on all clips and compare their outputs.

    Args:
        source: The fp32 model; it runs on ONNX Runtime.
        candidate: The quantized model.
        backend: Returns the backend that the quantized model runs on.
        clips: Speech in noise. PESQ is measured on clips with clean speech.
        thresholds: The limits.
        progress: Called after each clip.

    Raises:
        BackendUnavailable: A backend cannot run here.
        ModelError: The backend cannot load the quantized model.
        EngineError: The source fails. (If the quantized model fails, the report says so.)
    """
    scorer = Scorer()
    engine = backend()
    sessions = [_load(OrtBackend(), source), _load(engine, candidate)]
    results: list[ClipResult] = []
    failure = ""
    try:
        progress("gate", 0, len(clips))
        _denoise_timed(clips[0], sessions[0], source)  # the first run also allocates memory
        for done, clip in enumerate(clips, 1):
            expected, source_s = _denoise_timed(clip, sessions[0], source)
            try:
                if done == 1:
                    _denoise_timed(clip, sessions[1], candidate)
                found, candidate_s = _denoise_timed(clip, sessions[1], candidate)
            except EngineError as error:
                failure = f"on {clip.name}: {error}"
                break
            results.append(_measure(clip, expected, found, source_s, candidate_s, scorer))
            progress("gate", done, len(clips))
    finally:
        devices = [session.device for session in sessions]
        for session in sessions:
            session.close()
    return GateReport(
        measures=_measures(results, thresholds, scorer.notes, failure),
        clips=tuple(results),
        source_device=f"{OrtBackend.name}: {devices[0]}",
        candidate_device=f"{engine.name}: {devices[1]}",
        source_real_time_factor=_median(result.source_s / result.duration_s for result in results),
        candidate_real_time_factor=_median(result.candidate_s / result.duration_s for result in results),
        speedup=_median(result.source_s / result.candidate_s for result in results),
    )


def measure_sensitivity(
    source: ModelFile,
    groups: Sequence[str],
    build_only: Callable[[str], ModelFile],
    backend: Callable[[], Backend],
    clips: Sequence[Clip],
    progress: Progress,
) -> tuple[GroupCost, ...]:
    """Measure the cost of each layer group: the SI-SDR to the source's output with only this group quantized.

    Args:
        source: The fp32 model.
        groups: The layer groups.
        build_only: Returns the model with a single group quantized, valid until the next call.
        backend: Returns the backend that these models run on.
        clips: Audio to measure on; a few seconds are enough.
        progress: Called before each group and at the end.

    Returns:
        The costs, the highest first.
    """
    session = _load(OrtBackend(), source)
    expected = [denoise_clip(clip, session, source.metadata) for clip in clips]
    session.close()
    costs = []
    for done, group in enumerate(groups):
        progress("sensitivity", done, len(groups))
        candidate = build_only(group)
        session = _load(backend(), candidate)
        try:
            agreements = [
                agreement_db(reference, denoise_clip(clip, session, candidate.metadata))
                for clip, reference in zip(clips, expected, strict=True)
            ]
        except EngineError:
            agreements = [-MAX_AGREEMENT_DB]
        finally:
            session.close()
        costs.append(GroupCost(group, statistics.fmean(agreements)))
    progress("sensitivity", len(groups), len(groups))
    return tuple(sorted(costs, key=lambda cost: cost.si_sdr_db))


def _load(backend: Backend, model: ModelFile) -> Session:
    backend.check()
    return backend.load(model, available_cpus())


def _denoise_timed(clip: Clip, session: Session, model: ModelFile) -> tuple[NDArray[np.float32], float]:
    began = time.perf_counter()
    denoised = denoise_clip(clip, session, model.metadata)
    return denoised, time.perf_counter() - began


def _measure(
    clip: Clip,
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    source_s: float,
    candidate_s: float,
    scorer: Scorer,
) -> ClipResult:
    def scores(metric: str, score: Callable[[NDArray[np.float32]], float]) -> tuple[float, float] | tuple[None, None]:
        """Score both outputs; a clip counts only if both have a score."""
        source, candidate = (scorer.score(metric, partial(score, output)) for output in (expected, found))
        return (None, None) if source is None or candidate is None else (source, candidate)

    clean = clip.clean
    pesqs = (None, None) if clean is None else scores(PESQ, lambda output: pesq_wb(clean, output))
    dnsmoses = scores(DNSMOS, lambda output: dnsmos(output).ovrl)
    return ClipResult(
        name=clip.name,
        duration_s=clip.duration_s,
        si_sdr_db=agreement_db(expected, found),
        pesq_source=pesqs[0],
        pesq_candidate=pesqs[1],
        dnsmos_source=dnsmoses[0],
        dnsmos_candidate=dnsmoses[1],
        source_s=source_s,
        candidate_s=candidate_s,
    )


def _measures(
    results: Sequence[ClipResult], thresholds: GateThresholds, notes: dict[str, str], failure: str
) -> tuple[Measure, ...]:
    agreement = statistics.fmean(result.si_sdr_db for result in results) if results else None
    measures = [
        Measure(
            metric=SI_SDR,
            source=None,
            candidate=None,
            value=-MAX_AGREEMENT_DB if failure else agreement,
            limit=thresholds.min_si_sdr_db,
            unit="dB",
            clips=len(results),
            note=failure,
        )
    ]
    pesqs = [(result.pesq_source, result.pesq_candidate) for result in results]
    dnsmoses = [(result.dnsmos_source, result.dnsmos_candidate) for result in results]
    for metric, pairs, limit, unit in (
        (PESQ, pesqs, -thresholds.max_pesq_drop_percent, "%"),
        (DNSMOS, dnsmoses, -thresholds.max_dnsmos_drop, "points"),
    ):
        scored = [(source, candidate) for source, candidate in pairs if source is not None and candidate is not None]
        if not scored:
            note = notes.get(metric, "no clip with clean speech" if metric == PESQ else "no clip could be scored")
            measures.append(Measure(metric, None, None, None, limit, unit, 0, note))
            continue
        source, candidate = (statistics.fmean(column) for column in zip(*scored, strict=True))
        change = 100 * (candidate / source - 1) if unit == "%" else candidate - source
        measures.append(Measure(metric, source, candidate, change, limit, unit, len(scored)))
    return tuple(measures)


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return statistics.median(values) if values else None
