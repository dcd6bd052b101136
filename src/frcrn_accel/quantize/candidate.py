"""Candidates of quantization: files with some layer groups in float, compared with their source."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from frcrn_accel.errors import QuantizeError
from frcrn_accel.models import ModelFile, ModelMetadata
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import Config
from frcrn_accel.progress import Progress
from frcrn_accel.quality.clips import Clip
from frcrn_accel.quantize.gate import GateReport, GateThresholds, GroupCost, compare, measure_sensitivity
from frcrn_accel.quantize.layers import Build
from frcrn_accel.quantize.methods import Method
from frcrn_accel.quantize.recordings import sample_clips

__all__ = ["Candidate", "CandidateFactory", "checked_groups"]

_SENSITIVITY_S = 8.0  # audio to measure layer groups on; there are dozens of groups


@dataclass(frozen=True)
class Candidate:
    """A quantized file with some layer groups in float, compared with its source.

    Attributes:
        metadata: Its metadata.
        gate: Measurements of the gate; None if it was skipped.
    """

    metadata: ModelMetadata
    gate: GateReport | None

    @property
    def kept_float(self) -> tuple[str, ...]:
        """Layer groups in float."""
        return self.metadata.kept_float

    @property
    def refused(self) -> bool:
        """Whether the gate refused it."""
        return self.gate is not None and not self.gate.passed


@dataclass(frozen=True)
class CandidateFactory:
    """Builds and measures the candidates of one model.

    Attributes:
        source: The fp32 model file.
        weights: Its weights.
        metadata: Metadata of the candidates, except for the groups in float.
        method: The method.
        build: Writes graphs.
        clips: Audio to measure on.
        thresholds: Limits of the gate; None to skip it.
        progress: Called on the way.
    """

    source: ModelFile
    weights: Weights
    metadata: ModelMetadata
    method: Method
    build: Build
    clips: Sequence[Clip]
    thresholds: GateThresholds | None
    progress: Progress

    def candidate(self, path: Path, keep_float: Sequence[str]) -> Candidate:
        """Write a candidate to a file and compare it with the source.

        Args:
            path: The file.
            keep_float: Layer groups to leave in float.

        Raises:
            Exception: See `gate.compare`.
        """
        kept_float = checked_groups(self.method, self.metadata, keep_float)
        metadata = dataclasses.replace(self.metadata, kept_float=kept_float)
        self.progress("build", 0, 1)
        self._write(path, metadata, kept_float)
        self.progress("build", 1, 1)
        model = ModelFile.open(path)
        if self.thresholds is None:
            return Candidate(metadata, None)
        gate = compare(self.source, model, self.method.backend, self.clips, self.thresholds, self.progress)
        return Candidate(metadata, gate)

    def costs(self, candidate: Candidate) -> tuple[GroupCost, ...]:
        """Measure the cost of each group that a candidate does not keep in float, the worst first."""
        groups = _groups(self.method, self.metadata)
        with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
            path = Path(folder) / f"{self.metadata.name}.onnx"

            def build_only(group: str) -> ModelFile:
                self._write(path, candidate.metadata, set(groups) - {group})
                return ModelFile.open(path)

            quantized = [group for group in groups if group not in candidate.kept_float]
            clips = sample_clips(self.clips, _SENSITIVITY_S)
            return measure_sensitivity(self.source, quantized, build_only, self.method.backend, clips, self.progress)

    def _write(self, path: Path, metadata: ModelMetadata, keep_float: Iterable[str]) -> None:
        path.write_bytes(self.build(self.weights, metadata, frozenset(keep_float)).SerializeToString())


def checked_groups(method: Method, metadata: ModelMetadata, keep_float: Sequence[str]) -> tuple[str, ...]:
    """Return the groups to keep in float, each once, in the order of the network.

    Raises:
        QuantizeError: The network has no such group, or the method does not quantize it.
    """
    groups = _groups(method, metadata)
    unknown = sorted(set(keep_float) - set(groups))
    if unknown:
        raise QuantizeError(
            f"unknown layer group {unknown[0]!r} for method {method.name!r}: choose from {', '.join(groups)}"
        )
    return tuple(group for group in groups if group in keep_float)


def _groups(method: Method, metadata: ModelMetadata) -> tuple[str, ...]:
    return method.groups(Config(metadata.channels, metadata.unets))
