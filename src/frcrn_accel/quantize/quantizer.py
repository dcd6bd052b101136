"""Quantizing a model file: build, compare with the source, and only then put it in place."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frcrn_accel._version import __version__
from frcrn_accel.atomic import replacing
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import MissingExtraError, ModelError, OutputExistsError, QualityError, QuantizeError
from frcrn_accel.models import ModelFile, ModelMetadata, find_model, read_weights
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import Config
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality.clips import Clip, read_clips
from frcrn_accel.quantize.gate import (
    GateReport,
    GateThresholds,
    GroupCost,
    Measure,
    compare,
    measure_sensitivity,
)
from frcrn_accel.quantize.methods import METHODS, Build, Method
from frcrn_accel.quantize.recordings import CALIBRATION_AUDIO, GATE_AUDIO, digest_of, model_inputs, sample_clips

__all__ = ["MAX_RESCUED", "QuantizeReport", "quantize_model"]

MAX_RESCUED = 4  # for the variants that the library makes by itself, where nobody is there to choose
PASSED, REFUSED, SKIPPED = "passed", "refused", "skipped"
_SENSITIVITY_S = 8.0  # audio on which layers are told apart: there are dozens of them
_NAMED_GROUPS, _NAMED_WITHIN_DB = (
    3,
    10.0,
)  # in an error: at most so many, as far as they cost nearly as much as the worst


@dataclass(frozen=True)
class QuantizeReport:
    """What quantizing did, or would have done had the gate not refused it.

    Attributes:
        source: The fp32 model file.
        output: The quantized one.
        model: Name of the model.
        method: How it was quantized.
        kept_float: Layer groups left in float on request.
        library_version: Version of this library.
        source_sha256, output_sha256: Digests of the files, hexadecimal.
        calibration_sha256: Digest of the calibration audio; "" without.
        source_bytes, output_bytes: Sizes of the files.
        verdict: "passed", "refused" (nothing was written) or "skipped".
        thresholds: What the gate allows; None if it was skipped.
        gate: What the gate measured; None if it was skipped.
        sensitivity: What each layer group costs, the worst first; empty if it was neither asked for nor needed.
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
        """Size of the quantized file over that of its source."""
        return self.output_bytes / self.source_bytes

    def to_json(self) -> dict[str, Any]:
        """Everything, as what `json.dumps` takes."""
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
    """Turn an fp32 model file into a quantized one, if it stays close enough to its source.

    Args:
        model: A known name, or the path of a file made by `frcrn-accel export`.
        out: Path of the ONNX file to write.
        method: One of `METHODS`.
        calibration: Folder with noisy speech, for methods that measure ranges; `CALIBRATION_AUDIO` is one.
        gate: How far the result may be from its source; None to not compare them, which the file then says.
        gate_audio: Folder with noisy speech to compare the two on, or with pairs in `noisy/` and `clean/`, each pair
            under one name. By default `GATE_AUDIO`.
        keep_float: Layer groups to leave in float, e.g. `"unet.encoders.1"`.
        max_rescued: If the gate refuses the result, leave up to so many further layer groups in float, those that
            cost most first, until it passes.
        sensitivity: Measure what each layer group costs, even if the gate passes the result.
        overwrite: Replace `out` if it exists.
        progress: Called with what is being done, how many steps of it are done and how many there are.

    Raises:
        QualityError: The result is too far from its source; nothing is written. It holds the report.
        QuantizeError: Unknown method or layer group, calibration audio that is missing or not wanted, or a folder
            without audio.
        MissingExtraError: The `[quantize]` extra is not installed.
        ModelError: The model is not usable, or quantized already.
        AudioError: Audio cannot be read.
        OutputExistsError: `out` exists and `overwrite` is false.
        BackendUnavailable: An engine that the gate compares with is not installed.
    """
    try:
        import onnx  # noqa: F401 - every builder does
    except ImportError as error:
        raise MissingExtraError("Quantizing a model", "quantize", error) from error

    chosen = _method(method)
    source = find_model(model)
    weights = read_weights(source.path)
    kept_float = _checked_groups(chosen, source.metadata, keep_float)
    clips = read_clips(gate_audio or GATE_AUDIO, source.metadata.sample_rate_hz) if gate or sensitivity else []
    out = Path(out)
    try:
        with replacing(out, overwrite=overwrite) as temporary:
            build, calibration_sha256 = _prepare(chosen, weights, source.metadata, calibration, progress)
            source_sha256 = sha256_of(source.path)
            costs: tuple[GroupCost, ...] = ()
            while True:
                metadata = dataclasses.replace(
                    source.metadata,
                    library_version=__version__,
                    method=chosen.name,
                    source_sha256=source_sha256,
                    calibration_sha256=calibration_sha256,
                    gate=PASSED if gate else SKIPPED,  # a file that does not pass is never put in place
                    kept_float=kept_float,
                )
                progress("build", 0, 1)
                temporary.write_bytes(build(weights, metadata, frozenset(kept_float)).SerializeToString())
                progress("build", 1, 1)
                candidate = ModelFile.open(temporary)
                compared = compare(source, candidate, chosen.backend, clips, gate, progress) if gate else None
                refused = compared is not None and not compared.passed
                if (sensitivity or refused) and not costs:
                    costs = _sensitivity(source, weights, metadata, chosen, build, clips, progress)
                rescued = [cost.group for cost in costs if cost.group in kept_float]
                left = [cost.group for cost in costs if cost.group not in kept_float]
                if not (refused and left and len(rescued) < max_rescued):
                    break
                kept_float = _checked_groups(chosen, source.metadata, [*kept_float, left[0]])
            report = QuantizeReport(
                source=str(source.path),
                output=str(out),
                model=metadata.name,
                method=chosen.name,
                kept_float=kept_float,
                library_version=__version__,
                source_sha256=source_sha256,
                output_sha256=sha256_of(temporary),
                calibration_sha256=calibration_sha256,
                source_bytes=source.path.stat().st_size,
                output_bytes=temporary.stat().st_size,
                verdict=REFUSED if refused else metadata.gate,
                thresholds=gate,
                gate=compared,
                sensitivity=costs,
            )
            if refused:
                raise QualityError(_refusal(report), report)
    except OutputExistsError:
        raise
    except OSError as error:
        raise ModelError(f"{str(out)!r} cannot be written: {error.strerror}") from error
    return report


def _method(name: str) -> Method:
    if name not in METHODS:
        raise QuantizeError(f"unknown method {name!r}: there are {', '.join(METHODS)}")
    return METHODS[name]


def _groups(method: Method, metadata: ModelMetadata) -> tuple[str, ...]:
    return method.groups(Config(metadata.channels, metadata.unets))


def _checked_groups(method: Method, metadata: ModelMetadata, keep_float: Sequence[str]) -> tuple[str, ...]:
    """The groups to keep in float, each once, in the order of the model."""
    groups = _groups(method, metadata)
    unknown = sorted(set(keep_float) - set(groups))
    if unknown:
        raise QuantizeError(f"unknown layer group {unknown[0]!r} for {method.name!r}: there are {', '.join(groups)}")
    return tuple(group for group in groups if group in keep_float)


def _prepare(
    method: Method, weights: Weights, metadata: ModelMetadata, calibration: Path | None, progress: Progress
) -> tuple[Build, str]:
    """What builds graphs, and the digest of the audio it was calibrated on."""
    if not method.needs_calibration:
        if calibration is not None:
            raise QuantizeError(f"method {method.name!r} takes no calibration audio: leave --calibration out")
        return method.prepare(weights, []), ""
    if calibration is None:
        raise QuantizeError(
            f"method {method.name!r} measures ranges on audio: give --calibration DIR, a folder with a minute or so "
            f"of noisy speech such as the model is to denoise; the package has one at {str(CALIBRATION_AUDIO)!r}"
        )
    progress("calibrate", 0, 1)
    clips = read_clips(calibration, metadata.sample_rate_hz)
    build = method.prepare(weights, model_inputs(clips, metadata))
    progress("calibrate", 1, 1)
    return build, digest_of(clips)


def _sensitivity(
    source: ModelFile,
    weights: Weights,
    metadata: ModelMetadata,
    method: Method,
    build: Build,
    clips: Sequence[Clip],
    progress: Progress,
) -> tuple[GroupCost, ...]:
    """What each group that is not kept in float costs."""
    groups = _groups(method, metadata)
    with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
        path = Path(folder) / f"{metadata.name}.onnx"

        def build_only(group: str) -> ModelFile:
            path.write_bytes(build(weights, metadata, frozenset(groups) - {group}).SerializeToString())
            return ModelFile.open(path)

        quantized = [group for group in groups if group not in metadata.kept_float]
        return measure_sensitivity(
            source, quantized, build_only, method.backend, sample_clips(clips, _SENSITIVITY_S), progress
        )


def _refusal(report: QuantizeReport) -> str:
    """What went wrong and what to do, in one line."""
    measures = report.gate.measures if report.gate else ()
    failed = "; ".join(_described(measure) for measure in measures if measure.passed is False)
    text = f"{report.output!r} was not written, too far from {report.source!r}: {failed}"
    left = [cost for cost in report.sensitivity if cost.group not in report.kept_float]
    if not left:
        return f"{text}, though every layer group is in float: this method does not suit this model"
    most_db = left[0].si_sdr_db + _NAMED_WITHIN_DB
    worst = [cost for cost in left[:_NAMED_GROUPS] if cost.si_sdr_db < most_db]
    costs = ", ".join(f"{cost.group} ({cost.si_sdr_db:.1f} dB alone)" for cost in worst)
    options = " ".join(f"--keep-float {cost.group}" for cost in worst)
    return f"{text}. The layers that cost most are {costs}: keep them in float with {options}"


def _described(measure: Measure) -> str:
    if measure.note:
        return f"{measure.metric}: {measure.note}"
    return f"{measure.metric} {measure.value:.2f} {measure.unit} (at least {measure.limit:g})"
