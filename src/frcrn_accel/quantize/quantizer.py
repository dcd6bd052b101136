"""Quantize a model file: build a candidate, compare it with the source, and only then move it into place."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from frcrn_accel._version import __version__
from frcrn_accel.atomic import replacing
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import MissingExtraError, ModelError, OutputExistsError, QualityError, QuantizeError
from frcrn_accel.models import DEFAULT_MODEL, find_model, packaged_variant, ready_variant
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quantize.candidate import Candidate, CandidateFactory, checked_groups
from frcrn_accel.quantize.gate import GateReport, GateThresholds, Measure
from frcrn_accel.quantize.layers import Build
from frcrn_accel.quantize.methods import METHODS, Method
from frcrn_accel.quantize.parallel import workers
from frcrn_accel.quantize.recordings import CALIBRATION_AUDIO, GATE_AUDIO
from frcrn_accel.quantize.sensitivity import GroupCost
from frcrn_accel.quantize.source import Source

__all__ = ["MAX_RESCUED", "QuantizeReport", "Rescue", "quantize_model"]

MAX_RESCUED = 4  # of some 50 layer groups: a method that needs more does not suit the model
PASSED, REFUSED, SKIPPED = "passed", "refused", "skipped"
# An error names at most this many groups, and only those that cost nearly as much as the worst.
_NAMED_GROUPS = 3
_NAMED_WITHIN_DB = 10.0


@dataclass(frozen=True)
class Rescue:
    """Layer groups that were left in float because the gate refused the file without them, and what they cost.

    Attributes:
        groups: The groups, in the order in which they were added.
        refused_for: What the gate refused without them.
        bytes_without: Size of the file without them in float.
    """

    groups: tuple[str, ...]
    refused_for: str
    bytes_without: int


@dataclass(frozen=True)
class QuantizeReport:
    """Result of quantizing a model, also of one that the gate refused.

    Attributes:
        source: The fp32 model file.
        output: The quantized file.
        model: Name of the model.
        method: The method.
        kept_float: Layer groups left in float, on request or to pass the gate.
        library_version: Version of this library.
        source_sha256, output_sha256: Digests of the files, hexadecimal.
        calibration_sha256: Digest of the calibration audio; "" if there was none.
        source_bytes, output_bytes: Sizes of the files.
        verdict: "passed", "refused" (nothing was written) or "skipped".
        thresholds: Limits of the gate; None if it was skipped.
        gate: Measurements of the gate; None if it was skipped.
        sensitivity: Costs of layer groups, the worst first: of all groups on request, else of those that were
            measured in search of the costliest.
        rescue: Groups that were left in float to pass the gate; None if it passed without them.
    """

    source: str
    output: str
    model: str
    method: str
    kept_float: tuple[str, ...]
    library_version: str
    source_sha256: str
    output_sha256: str
    calibration_sha256: str
    source_bytes: int
    output_bytes: int
    verdict: str
    thresholds: GateThresholds | None
    gate: GateReport | None
    sensitivity: tuple[GroupCost, ...]
    rescue: Rescue | None = None

    @property
    def size_ratio(self) -> float:
        """Size of the quantized file, as a share of the size of its source."""
        return self.output_bytes / self.source_bytes

    def to_json(self) -> dict[str, Any]:
        """Return all fields as values that `json.dumps` takes."""
        values = dataclasses.asdict(self) | {"size_ratio": self.size_ratio}
        if self.gate is not None:
            for measure, found in zip(values["gate"]["measures"], self.gate.measures, strict=True):
                measure["passed"] = found.passed
        return values


def quantize_model(
    model: str | Path | Source,
    out: str | Path,
    method: str,
    *,
    calibration: Path | None = None,
    gate: GateThresholds | None = GateThresholds(),  # noqa: B008 - frozen
    gate_audio: Path | None = None,
    keep_float: Sequence[str] = (),
    max_rescued: int = MAX_RESCUED,
    sensitivity: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> QuantizeReport:
    """Quantize an fp32 model file. Write the result only if it stays close enough to its source.

    >>> from frcrn_accel.quantize import quantize_model
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = quantize_model("frcrn-small", f"{folder}/half.onnx", "fp16", gate=None)
    >>> report.verdict
    'skipped'

    Args:
        model: A known name, or the path of a file written by `frcrn-accel export`; or a `Source`, to share data
            between several methods.
        out: Path of the ONNX file to write.
        method: One of `METHODS`.
        calibration: Folder of noisy speech, for methods that measure ranges; the package has `CALIBRATION_AUDIO`.
        gate: How far the result may be from its source. None skips the comparison, which the file then records.
        gate_audio: Folder of noisy speech to compare the two on, or a folder with `noisy/` and `clean/` that hold
            pairs of equal names. By default `GATE_AUDIO`.
        keep_float: Layer groups to leave in float, e.g. `"unet.encoders.1"`.
        max_rescued: If the gate refuses the result, leave up to this many further layer groups in float, the
            costliest first, until it passes. The report lists them, and what they cost.
        sensitivity: Measure the cost of each layer group even if the gate passes the result.
        overwrite: Replace `out` if it exists.
        progress: Called while the model is calibrated, built and compared.

    Raises:
        QualityError: The result is too far from its source; nothing is written. The error holds the report.
        QuantizeError: Unknown method or layer group, calibration audio that is missing or not used by the method, or
            a folder without audio.
        MissingExtraError: The `[quantize]` extra is not installed.
        ModelError: The model is not usable or quantized already, or `out` cannot be written.
        AudioError: Audio cannot be read.
        OutputExistsError: `out` exists and `overwrite` is false.
        BackendUnavailable: A backend that the gate compares with is not installed.
    """
    try:
        import onnx  # noqa: F401 - every builder needs it
    except ImportError as error:
        raise MissingExtraError("Quantizing a model", "quantize", error) from error

    chosen = _method(method)
    source = model if isinstance(model, Source) else Source(find_model(model))
    weights = source.weights  # an error about the model comes before others
    kept_float = checked_groups(chosen, source.model.metadata, keep_float)
    reference = source.reference(gate_audio or GATE_AUDIO) if gate or sensitivity else None
    out = Path(out)
    try:
        clips_at_once = 1 if reference is None else reference.threads.clips
        with replacing(out, overwrite=overwrite) as temporary, workers(clips_at_once) as pool:
            build, calibration_sha256 = _prepare(chosen, source, calibration, progress)
            metadata = dataclasses.replace(
                source.model.metadata,
                library_version=__version__,
                method=chosen.name,
                source_sha256=source.sha256,
                calibration_sha256=calibration_sha256,
                gate=PASSED if gate else SKIPPED,  # a file that does not pass never gets into place
            )
            factory = CandidateFactory(weights, metadata, chosen, build, reference, gate, pool, progress)
            candidate, rescue, costs = _choose(
                factory, temporary, kept_float, max_rescued, _likely(source, chosen), measure_all=sensitivity
            )
            report = QuantizeReport(
                source=str(source.model.path),
                output=str(out),
                model=metadata.name,
                method=chosen.name,
                kept_float=candidate.kept_float,
                library_version=__version__,
                source_sha256=metadata.source_sha256,
                output_sha256=sha256_of(temporary),
                calibration_sha256=calibration_sha256,
                source_bytes=source.model.path.stat().st_size,
                output_bytes=candidate.bytes,
                verdict=REFUSED if candidate.refused else metadata.gate,
                thresholds=gate,
                gate=candidate.gate,
                sensitivity=tuple(sorted(costs, key=lambda cost: cost.si_sdr_db)),
                rescue=rescue,
            )
            if candidate.refused:
                raise QualityError(_refusal(report), report)
            if rescue is not None:
                source.rescued = rescue.groups
    except OutputExistsError:
        raise
    except OSError as error:
        raise ModelError(f"{str(out)!r} cannot be written: {error.strerror}") from error
    return report


def _choose(
    factory: CandidateFactory,
    path: Path,
    kept_float: Sequence[str],
    max_rescued: int,
    likely: Sequence[str],
    *,
    measure_all: bool,
) -> tuple[Candidate, Rescue | None, list[GroupCost]]:
    """Write a candidate that passes the gate with few groups in float, all of them needed, or the last refused one.

    Args:
        factory: Makes candidates.
        path: File of the candidate.
        kept_float: Groups to keep in float in any case.
        max_rescued: Groups to keep in float beyond those, at most.
        likely: Groups to try first. If they are not enough, they are dropped, and the costliest are looked for.
        measure_all: Whether to measure the cost of each group.

    Returns:
        The candidate, the groups that were rescued, and the costs of the groups that were measured.
    """
    candidate = first = factory.candidate(path, kept_float, is_last=not max_rescued)
    groups = factory.quantized_groups(first)
    if not (measure_all or candidate.refused):
        return candidate, None, []
    costs: list[GroupCost] = []
    rescued: list[str] = []
    most = min(max_rescued, len(groups))
    refused: dict[frozenset[str], Candidate] = {}

    def rescue(group: str) -> None:
        nonlocal candidate
        rescued.append(group)
        is_last = len(rescued) == most
        known = None if is_last else refused.get(frozenset(rescued))  # the search may come to groups that were likely
        candidate = known or factory.candidate(path, [*kept_float, *rescued], is_last=is_last, first=first)
        if candidate.refused:
            refused[frozenset(rescued)] = candidate

    with factory.sensitivity() as sensitivity:
        if measure_all:
            costs += sensitivity.all(groups)
            worst = iter(costs)
        else:
            for group in likely:
                if candidate.refused and group in groups and len(rescued) < most:
                    rescue(group)
            if candidate.refused:
                rescued.clear()
                candidate = first
            worst = sensitivity.worst(factory.quantized_groups(candidate), sensitivity.of(candidate.gate))
        while candidate.refused and len(rescued) < most:
            cost = next(worst)
            costs += [] if measure_all else [cost]
            rescue(cost.group)
        if candidate.refused and not measure_all:
            costs += islice(worst, _NAMED_GROUPS)
    if not candidate.refused:
        candidate, rescued = _with_fewer(factory, path, first, candidate, kept_float, rescued)
    if candidate.refused or not rescued:
        return candidate, None, costs
    gate = first.gate
    assert gate is not None
    refused_for = _failed(gate)
    return candidate, Rescue(tuple(rescued), refused_for, first.bytes), costs


def _with_fewer(
    factory: CandidateFactory,
    path: Path,
    first: Candidate,
    candidate: Candidate,
    kept_float: Sequence[str],
    rescued: list[str],
) -> tuple[Candidate, list[str]]:
    """Quantize rescued groups again that are no longer needed in float, because the costs of groups do not add up.

    Returns:
        The candidate, whose file is at the path, and its rescued groups.
    """
    with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
        trial_path = Path(folder) / path.name
        for group in rescued[:-1]:  # without the last one, it was refused
            fewer = [other for other in rescued if other != group]
            trial = factory.candidate(trial_path, [*kept_float, *fewer], is_last=False, first=first)
            if not trial.refused:
                path.write_bytes(trial_path.read_bytes())
                candidate, rescued = trial, fewer
    return candidate, rescued


def _likely(source: Source, method: Method) -> tuple[str, ...]:
    """Return the groups that other methods left in float for this model, and this method for the packaged model."""
    packaged = packaged_variant(find_model(DEFAULT_MODEL), method.name)
    kept = () if packaged is None else packaged.metadata.kept_float
    return tuple(dict.fromkeys([*source.rescued, *kept]))


def _method(name: str) -> Method:
    if name not in METHODS:
        raise QuantizeError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def _prepare(method: Method, source: Source, calibration: Path | None, progress: Progress) -> tuple[Build, str]:
    """Return the function that builds graphs, and the digest of the audio that it was calibrated on."""
    if not method.needs_calibration:
        if calibration is not None:
            raise QuantizeError(f"method {method.name!r} does not use calibration audio: leave --calibration out")
        return _prepared_as_before(method, source, "", progress) or method.prepare(source.weights, [], progress), ""
    if calibration is None:
        raise QuantizeError(
            f"method {method.name!r} measures ranges on audio: give --calibration DIR, a folder with about a minute "
            f"of noisy speech like the audio to denoise; the package has one at {str(CALIBRATION_AUDIO)!r}"
        )
    progress("calibrate", 0, 1)
    audio, digest = source.calibration(calibration)
    build = _prepared_as_before(method, source, digest, progress) or method.prepare(source.weights, audio, progress)
    progress("calibrate", 1, 1)
    return build, digest


def _prepared_as_before(method: Method, source: Source, calibration_sha256: str, progress: Progress) -> Build | None:
    """Take what was measured from a file of the same model, audio and version of this library; None without one."""
    if method.prepare_as_before is None:
        return None
    made = ready_variant(source.model, method.name)
    wanted = calibration_sha256, __version__
    if made is None or (made.metadata.calibration_sha256, made.metadata.library_version) != wanted:
        return None
    progress("measure ranges", 1, 1)
    return method.prepare_as_before(made)


def _refusal(report: QuantizeReport) -> str:
    """Return, on one line, what the gate refused and what to do."""
    failed = _failed(report.gate) if report.gate else ""
    kept = f", with {', '.join(report.kept_float)} in float" if report.kept_float else ""
    text = f"{report.output!r} was not written, too far from {report.source!r}: {failed}{kept}"
    left = [cost for cost in report.sensitivity if cost.group not in report.kept_float]
    if not left:
        return f"{text}, even with every layer group in float: this method does not suit this model"
    most_db = left[0].si_sdr_db + _NAMED_WITHIN_DB
    worst = [cost for cost in left[:_NAMED_GROUPS] if cost.si_sdr_db < most_db]
    costs = ", ".join(f"{cost.group} ({cost.si_sdr_db:.1f} dB alone)" for cost in worst)
    options = " ".join(f"--keep-float {cost.group}" for cost in worst)
    return f"{text}. The costliest layer groups are {costs}: keep them in float with {options}"


def _failed(gate: GateReport) -> str:
    """Return the measures that are beyond their limits."""
    return "; ".join(_described(measure) for measure in gate.measures if measure.passed is False)


def _described(measure: Measure) -> str:
    if measure.note:
        return f"{measure.metric}: {measure.note}"
    return f"{measure.metric} {measure.value:.2f} {measure.unit} (at least {measure.limit:g})"
