"""Candidates of quantization: files with some layer groups in float, compared with their source."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from frcrn_accel.errors import QuantizeError
from frcrn_accel.models import ModelFile, ModelMetadata
from frcrn_accel.network.checkpoint import Weights
from frcrn_accel.network.topology import Config
from frcrn_accel.progress import Progress
from frcrn_accel.quantize.gate import GateReport, GateThresholds, compare
from frcrn_accel.quantize.layers import Build
from frcrn_accel.quantize.methods import Method
from frcrn_accel.quantize.reference import Reference
from frcrn_accel.quantize.sensitivity import Sensitivity

__all__ = ["Candidate", "CandidateFactory", "checked_groups"]


@dataclass(frozen=True)
class Candidate:
    """A quantized file with some layer groups in float, compared with its source.

    Attributes:
        metadata: Its metadata.
        bytes: Its size.
        gate: Measurements of the gate; None if it was skipped.
    """

    metadata: ModelMetadata
    bytes: int
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
        weights: Weights of the fp32 model.
        metadata: Metadata of the candidates, except for the groups in float.
        method: The method.
        build: Writes graphs.
        reference: Outputs of the fp32 model; None to skip the gate.
        thresholds: Limits of the gate; None to skip it.
        pool: Threads of the gate, as many as the reference plans.
        progress: Called while candidates are built and measured.
    """

    weights: Weights
    metadata: ModelMetadata
    method: Method
    build: Build
    reference: Reference | None
    thresholds: GateThresholds | None
    pool: ThreadPoolExecutor
    progress: Progress

    def candidate(
        self, path: Path, keep_float: Sequence[str], *, is_last: bool, first: Candidate | None = None
    ) -> Candidate:
        """Write a candidate to a file and compare it with the source.

        Args:
            path: The file.
            keep_float: Layer groups to leave in float.
            is_last: Whether it goes into the report even if it is refused, so that all measures are needed.
            first: The candidate that this one is to improve on; None if it is the first.

        Raises:
            Exception: See `gate.compare`.
        """
        kept_float = checked_groups(self.method, self.metadata, keep_float)
        metadata = dataclasses.replace(self.metadata, kept_float=kept_float)
        self.progress("build", 0, 1)
        self._write(path, metadata, kept_float)
        self.progress("build", 1, 1)
        model = ModelFile.open(path)
        gate = None
        if self.reference is not None and self.thresholds is not None:
            gate = compare(
                self.reference,
                model,
                self.method.backend,
                self.thresholds,
                self.pool,
                self.progress,
                complete=is_last,
                first=None if first is None or is_last else first.gate,
            )
        return Candidate(metadata, path.stat().st_size, gate)

    def quantized_groups(self, candidate: Candidate) -> tuple[str, ...]:
        """Return the layer groups that a candidate does not keep in float."""
        return tuple(group for group in self._groups if group not in candidate.kept_float)

    @contextmanager
    def sensitivity(self) -> Iterator[Sensitivity]:
        """Measure the cost of groups, with models in a temporary folder."""
        assert self.reference is not None
        with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
            paths = itertools.cycle(Path(folder) / f"{self.metadata.name}-{number}.onnx" for number in (0, 1))

            def build_only(quantized: Sequence[str]) -> ModelFile:
                path = next(paths)
                self._write(path, self.metadata, set(self._groups) - set(quantized))
                return ModelFile.open(path)

            yield Sensitivity(self.reference, build_only, self.method.backend, self.progress)

    @property
    def _groups(self) -> tuple[str, ...]:
        return _groups(self.method, self.metadata)

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
