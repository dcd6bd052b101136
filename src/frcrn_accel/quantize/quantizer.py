"""Quantize a model file: build a candidate, compare it with the source, and only then move it into place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcrn_accel._version import __version__
from frcrn_accel.atomic import replacing
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import MissingExtraError, ModelError, OutputExistsError, QualityError, QuantizeError
from frcrn_accel.models import ModelMetadata, find_model, read_weights
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality.clips import read_clips
from frcrn_accel.quantize.candidate import CandidateFactory, checked_groups
from frcrn_accel.quantize.gate import GateReport, GateThresholds, GroupCost, Measure
from frcrn_accel.quantize.layers import Build
from frcrn_accel.quantize.methods import METHODS, Method
from frcrn_accel.quantize.recordings import CALIBRATION_AUDIO, GATE_AUDIO, digest_of, model_inputs

__all__ = ["MAX_RESCUED", "QuantizeReport", "quantize_model"]

MAX_RESCUED = 4  # for variants that the library makes on its own, with no user to choose the groups
PASSED, REFUSED, SKIPPED = "passed", "refused", "skipped"
# An error names at most this many groups, and only those that cost nearly as much as the worst.
_NAMED_GROUPS = 3
_NAMED_WITHIN_DB = 10.0


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
        calibration_sha256: Digest of the calibration audio; "" without.
        source_bytes, output_bytes: Sizes of the files.
        verdict: "passed", "refused" (nothing was written) or "skipped".
        thresholds: Limits of the gate; None if it was skipped.
        gate: Measurements of the gate; None if it was skipped.
        sensitivity: Cost of each layer group, the worst first; empty if it was neither requested nor needed.
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
    model: str | Path,
    out: str | Path,
    method: str,
    *,
    calibration: Path | None = None,
    gate: GateThresholds | None = GateThresholds(),  # noqa: B008 - frozen
    gate_audio: Path | None = None,
    keep_float: Sequence[str] = (),
    max_rescued: int = 0,
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
        model: A known name, or the path of a file written by `frcrn-accel export`.
        out: Path of the ONNX file to write.
        method: One of `METHODS`.
        calibration: Folder of noisy speech, for methods that measure ranges; the package has `CALIBRATION_AUDIO`.
        gate: How far the result may be from its source. None skips the comparison, which the file then records.
        gate_audio: Folder of noisy speech to compare the two on, or a folder with `noisy/` and `clean/` that hold
            pairs of equal names. By default `GATE_AUDIO`.
        keep_float: Layer groups to leave in float, e.g. `"unet.encoders.1"`.
        max_rescued: If the gate refuses the result, leave up to this many further layer groups in float, the
            costliest first, until it passes.
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
        import onnx  # noqa: F401 - every builder does
    except ImportError as error:
        raise MissingExtraError("Quantizing a model", "quantize", error) from error

    chosen = _method(method)
    source = find_model(model)
    weights = read_weights(source.path)
    kept_float = checked_groups(chosen, source.metadata, keep_float)
    clips = read_clips(gate_audio or GATE_AUDIO, source.metadata.sample_rate_hz) if gate or sensitivity else []
    out = Path(out)
    try:
        with replacing(out, overwrite=overwrite) as temporary:
            build, calibration_sha256 = _prepare(chosen, weights, source.metadata, calibration, progress)
            metadata = dataclasses.replace(
                source.metadata,
                library_version=__version__,
                method=chosen.name,
                source_sha256=sha256_of(source.path),
                calibration_sha256=calibration_sha256,
                gate=PASSED if gate else SKIPPED,  # a file that does not pass never gets into place
            )
            factory = CandidateFactory(source, weights, metadata, chosen, build, clips, gate, progress)
            candidate = factory.candidate(temporary, kept_float)
            costs = factory.costs(candidate) if sensitivity or candidate.refused else ()
            for cost in costs[:max_rescued]:
                if not candidate.refused:
                    break
                candidate = factory.candidate(temporary, [*candidate.kept_float, cost.group])
            report = QuantizeReport(
                source=str(source.path),
                output=str(out),
                model=metadata.name,
                method=chosen.name,
                kept_float=candidate.kept_float,
                library_version=__version__,
                source_sha256=metadata.source_sha256,
                output_sha256=sha256_of(temporary),
                calibration_sha256=calibration_sha256,
                source_bytes=source.path.stat().st_size,
                output_bytes=temporary.stat().st_size,
                verdict=REFUSED if candidate.refused else metadata.gate,
                thresholds=gate,
                gate=candidate.gate,
                sensitivity=costs,
            )
            if candidate.refused:
                raise QualityError(_refusal(report), report)
    except OutputExistsError:
        raise
    except OSError as error:
        raise ModelError(f"{str(out)!r} cannot be written: {error.strerror}") from error
    return report


def _method(name: str) -> Method:
    if name not in METHODS:
        raise QuantizeError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def _prepare(
    method: Method, weights: Weights, metadata: ModelMetadata, calibration: Path | None, progress: Progress
) -> tuple[Build, str]:
    """Return the function that builds graphs, and the digest of the audio that it was calibrated on."""
    if not method.needs_calibration:
        if calibration is not None:
            raise QuantizeError(f"method {method.name!r} does not use calibration audio: leave --calibration out")
        return method.prepare(weights, []), ""
    if calibration is None:
        raise QuantizeError(
            f"method {method.name!r} measures ranges on audio: give --calibration DIR, a folder with about a minute "
            f"of noisy speech like the audio to denoise; the package has one at {str(CALIBRATION_AUDIO)!r}"
        )
    progress("calibrate", 0, 1)
    clips = read_clips(calibration, metadata.sample_rate_hz)
    build = method.prepare(weights, model_inputs(clips, metadata))
    progress("calibrate", 1, 1)
    return build, digest_of(clips)


def _refusal(report: QuantizeReport) -> str:
    """Say in one line what the gate refused and what to do."""
    measures = report.gate.measures if report.gate else ()
    failed = "; ".join(_described(measure) for measure in measures if measure.passed is False)
    text = f"{report.output!r} was not written, too far from {report.source!r}: {failed}"
    left = [cost for cost in report.sensitivity if cost.group not in report.kept_float]
    if not left:
        return f"{text}, even with every layer group in float: this method does not suit this model"
    most_db = left[0].si_sdr_db + _NAMED_WITHIN_DB
    worst = [cost for cost in left[:_NAMED_GROUPS] if cost.si_sdr_db < most_db]
    costs = ", ".join(f"{cost.group} ({cost.si_sdr_db:.1f} dB alone)" for cost in worst)
    options = " ".join(f"--keep-float {cost.group}" for cost in worst)
    return f"{text}. The costliest layer groups are {costs}: keep them in float with {options}"


def _described(measure: Measure) -> str:
    if measure.note:
        return f"{measure.metric}: {measure.note}"
    return f"{measure.metric} {measure.value:.2f} {measure.unit} (at least {measure.limit:g})"
