"""Is a quantized model still the model that it was made from? Measured on speech in noise."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import Backend, Session
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.errors import AudioError, EngineError, MissingExtraError, QuantizeError
from frcrn_accel.models import ModelFile
from frcrn_accel.progress import Progress
from frcrn_accel.quality import dnsmos, pesq_wb, si_sdr_db
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
MAX_AGREEMENT_DB = 120.0  # of outputs that are equal, or nearly: float32 holds no more


@dataclass(frozen=True)
class GateThresholds:
    """How far a quantized model may be from its source.

    Attributes:
        max_pesq_drop_percent: Most that the mean PESQ-WB may be lower, percent.
        min_si_sdr_db: Least mean SI-SDR of its output to the source's output, dB.
        max_dnsmos_drop: Most that the mean DNSMOS OVRL may be lower.

    Raises:
        QuantizeError: A limit is not a number, a drop is negative, or the SI-SDR is -120 dB or less.
    """

    max_pesq_drop_percent: float = 1.0
    min_si_sdr_db: float = 30.0
    max_dnsmos_drop: float = 0.03

    def __post_init__(self) -> None:
        """Check the limits."""
        # A model that gives no audio is held to have the least SI-SDR there is: no limit may let it pass.
        drops = (self.max_pesq_drop_percent, self.max_dnsmos_drop)
        if not (all(drop >= 0 for drop in drops) and self.min_si_sdr_db > -MAX_AGREEMENT_DB):
            raise QuantizeError(f"drops must be 0 or more, and the SI-SDR above {-MAX_AGREEMENT_DB:g} dB, got {self}")


@dataclass(frozen=True)
class Measure:
    """One thing that was held against its limit.

    Attributes:
        metric: What was measured.
        source: Its mean for the source; None where the two are measured against each other.
        candidate: Its mean for the quantized model; None where the two are measured against each other.
        value: What the limit is about: the SI-SDR between the two in dB, a change in percent or a change in points;
            None if it was not measured.
        limit: The least `value` that passes.
        unit: Of `value` and `limit`.
        clips: How many clips it is the mean of.
        note: Why it was not measured, or what went wrong; else empty.
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
        """Whether it is within its limit; None if it was not measured."""
        return None if self.value is None else self.value >= self.limit


@dataclass(frozen=True)
class ClipResult:
    """What was measured on one clip; None for what was not.

    Attributes:
        name: The clip.
        duration_s: Its length.
        si_sdr_db: Of the quantized model's output to the source's, at most 120 dB.
        pesq_source, pesq_candidate: PESQ-WB of the two outputs.
        dnsmos_source, dnsmos_candidate: DNSMOS OVRL of the two outputs.
        source_s, candidate_s: Time the two took.
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
    """A quantized model against its source.

    Attributes:
        measures: What was held against its limit.
        clips: All results.
        source_device, candidate_device: Backend and device that each ran on.
        source_real_time_factor, candidate_real_time_factor: Time over length of audio, medians over the clips, on
            which the two took turns; None if the quantized model failed on the first.
        speedup: Time of the source over that of the quantized model, median over the clips.
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
        """Whether nothing that was measured is beyond its limit."""
        return all(measure.passed is not False for measure in self.measures)


@dataclass(frozen=True)
class GroupCost:
    """What quantizing one layer group alone costs.

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
    """Run both models on all clips and measure.

    Args:
        source: The fp32 model; it runs on ONNX Runtime.
        candidate: The quantized model.
        backend: Gives what it runs on.
        clips: Speech in noise; PESQ takes those whose clean speech is known.
        thresholds: The limits.
        progress: Told after each clip.

    Raises:
        BackendUnavailable: An engine is not installed.
        ModelError: The engine cannot load the quantized model.
        EngineError: The source fails. (If the quantized model fails, that is part of the report.)
    """
    scores = _Scores()
    engine = backend()
    sessions = [_load(OrtBackend(), source), _load(engine, candidate)]
    results: list[ClipResult] = []
    failure = ""
    try:
        progress("gate", 0, len(clips))
        _denoise_timed(clips[0], sessions[0], source)  # the first run also takes memory, which costs time
        for done, clip in enumerate(clips, 1):
            expected, source_s = _denoise_timed(clip, sessions[0], source)
            try:
                if done == 1:
                    _denoise_timed(clip, sessions[1], candidate)
                found, candidate_s = _denoise_timed(clip, sessions[1], candidate)
            except EngineError as error:
                failure = f"on {clip.name}: {error}"
                break
            results.append(_measure(clip, expected, found, source_s, candidate_s, scores))
            progress("gate", done, len(clips))
    finally:
        devices = [session.device for session in sessions]
        for session in sessions:
            session.close()
    return GateReport(
        measures=_measures(results, thresholds, scores.notes, failure),
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
    """What each layer group costs: the SI-SDR to the source's output with only this group quantized.

    Args:
        source: The fp32 model.
        groups: The layer groups.
        build_only: Gives the model with only one group quantized; called for one after the other.
        backend: Gives what those run on.
        clips: Few are enough.
        progress: Told after each group.

    Returns:
        The groups, the one that costs most first.
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
                _agreement_db(reference, denoise_clip(clip, session, candidate.metadata))
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


class _Scores:
    """Scores both outputs with a metric, or gives up on a metric whose package is not installed.

    Attributes:
        notes: Why a metric was given up.
    """

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def of(
        self, metric: str, score: Callable[[NDArray[np.float32]], float], outputs: Sequence[NDArray[np.float32]]
    ) -> tuple[float | None, float | None]:
        if metric not in self.notes:
            try:
                source, candidate = (score(output) for output in outputs)
                return source, candidate
            except MissingExtraError as error:
                self.notes[metric] = str(error)
            except AudioError:  # no speech in this clip that could be scored
                pass
        return None, None


def _measure(
    clip: Clip,
    expected: NDArray[np.float32],
    found: NDArray[np.float32],
    source_s: float,
    candidate_s: float,
    scores: _Scores,
) -> ClipResult:
    clean = clip.clean
    outputs = (expected, found)
    pesqs = (None, None) if clean is None else scores.of(PESQ, lambda output: pesq_wb(clean, output), outputs)
    dnsmoses = scores.of(DNSMOS, lambda output: dnsmos(output).ovrl, outputs)
    return ClipResult(
        name=clip.name,
        duration_s=clip.duration_s,
        si_sdr_db=_agreement_db(expected, found),
        pesq_source=pesqs[0],
        pesq_candidate=pesqs[1],
        dnsmos_source=dnsmoses[0],
        dnsmos_candidate=dnsmoses[1],
        source_s=source_s,
        candidate_s=candidate_s,
    )


def _agreement_db(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """SI-SDR within bounds: equal signals, and silence, have none."""
    if np.array_equal(expected, found):
        return MAX_AGREEMENT_DB
    if not np.ptp(expected) or not np.ptp(found):
        return -MAX_AGREEMENT_DB
    with np.errstate(divide="ignore"):  # a multiple of the other
        return float(np.clip(si_sdr_db(expected, found), -MAX_AGREEMENT_DB, MAX_AGREEMENT_DB))


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
