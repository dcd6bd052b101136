"""The progress of a job, and in the end its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from frcrn_accel.corpus.journal import Entry

__all__ = ["CorpusReport"]


@dataclass
class CorpusReport:
    """The progress of a job, and in the end its result.

    Attributes:
        denoiser: Model, backend, precision and device, as text.
        files: Files of the job, or of its shard.
        before: Files that earlier runs have done.
        workers: Workers and the CPUs of each, as text; empty if there is nothing to do.
        done: Files done by this run.
        copied: Of these, files that were clean already and were copied unchanged.
        failed: Outputs that failed in this run, in a tar its members, with the reason.
        damaged: Outputs of earlier runs that were cut, damaged or lost, and are made again.
        warnings: What was missing or damaged in recordings of this run, and what outputs cannot keep, by output.
        left_out: Why files and folders of the input folder are left out, such as hidden ones, by their paths.
        other_suffixes: Number of files in the input folder that are not audio by their suffix, by suffix.
        other_formats: Suffixes of formats that are read but not written, with that of their outputs.
        audio_s: Length of the audio that this run has done.
        clipped_files: Files in which samples were clipped.
        clipped_samples: Samples that were clipped.
        wall_s: Time since the start of the first file.
    """

    denoiser: str
    files: int
    before: int
    workers: str = ""
    done: int = 0
    copied: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    warnings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    other_suffixes: dict[str, int] = field(default_factory=dict)
    other_formats: dict[str, str] = field(default_factory=dict)
    audio_s: float = 0.0
    clipped_files: int = 0
    clipped_samples: int = 0
    wall_s: float = 0.0

    @property
    def real_time_factor(self) -> float | None:
        """Processing time of all workers together over audio time; None before any audio is done."""
        return self.wall_s / self.audio_s if self.audio_s else None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {**vars(self), "failed": dict(self.failed), "real_time_factor": self.real_time_factor}

    def count(self, entry: Entry) -> None:
        """Add a file."""
        if entry.error is not None:
            self.failed[entry.member or entry.output] = entry.error
            return
        self.done += 1
        if entry.warnings:
            self.warnings[entry.member or entry.output] = entry.warnings
        self.copied += entry.copied
        self.audio_s += entry.duration_s or 0.0
        self.clipped_files += entry.clipped_samples > 0
        self.clipped_samples += entry.clipped_samples
