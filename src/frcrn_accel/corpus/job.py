"""The description of a job: what to denoise, how, where to, and who does the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frcrn_accel.corpus.plan import (
    JOURNAL_NAME,
    Inputs,
    Recording,
    Shard,
    Task,
    accepted,
    digest_of,
    in_tars,
    one_by_one,
    read_inputs,
)
from frcrn_accel.corpus.storage import check_protocols, is_remote
from frcrn_accel.denoiser import Denoiser, DenoiserOptions
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import CorpusError
from frcrn_accel.windows import Windowing

__all__ = ["LOCAL", "RAY", "CorpusJob"]

LOCAL, RAY = "local", "ray"
# The version that last changed what a job writes for equal inputs and settings. Later ones resume its journals.
# `test_what_a_job_writes` fails when it must be raised to the version to come.
_OUTPUTS_SINCE = "0.2.0"


@dataclass(frozen=True)
class CorpusJob:
    """A job over many files, for `denoise_corpus`.

    >>> from frcrn_accel.denoiser import DenoiserOptions
    >>> job = CorpusJob("recordings", "clean", DenoiserOptions(backend="ort"), shard=Shard(3, 16))
    >>> job.journal_path.name
    'corpus-3-of-16.jsonl'

    Attributes:
        inputs: A folder, a list or a manifest, see `plan.read_inputs`.
        out: Output folder, which gets the tree of the inputs: a path or a URL.
        denoiser: Options of the denoiser that each worker opens; name the backend, since they go to other processes.
            Without `threads` the CPUs of this machine are shared out among local workers, and actors get one each.
        shard: The part of the job to do, where several machines share it.
        files_per_tar: Files in each WebDataset tar; None to write a file for each recording.
        dnsmos: Whether to score each file with DNSMOS before and after.
        skip_clean: Files with at least this DNSMOS OVRL are copied unchanged; None to denoise all.
        workers_on: `"local"` for processes on this machine, `"ray"` for actors on a Ray cluster.
        workers: Workers, each with a denoiser of its own; None for as many as suit the machine or cluster.
        gpus: GPUs of each Ray actor; may be a fraction.
        journal: Path of the journal, where `out` is a URL; otherwise the journal is in `out`.
        verify: Whether to check the digests of the outputs of earlier runs; otherwise only their sizes are checked.
        overwrite: Whether to start over: drop the journal of an earlier run, and replace existing outputs.
    """

    inputs: str | Path
    out: str | Path
    denoiser: DenoiserOptions = DenoiserOptions()  # noqa: RUF009 - frozen
    shard: Shard = Shard()  # noqa: RUF009 - frozen
    files_per_tar: int | None = None
    dnsmos: bool = False
    skip_clean: float | None = None
    workers_on: str = LOCAL
    workers: int | None = None
    gpus: float = 0
    journal: str | Path | None = None
    verify: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Check that the values fit together; those without effect are errors.

        Raises:
            CorpusError: They do not.
        """
        if self.workers_on not in (LOCAL, RAY):
            raise CorpusError(f"workers cannot run on {self.workers_on!r}: choose {LOCAL!r} or {RAY!r}")
        if self.workers_on != RAY and self.gpus:
            raise CorpusError("only Ray assigns GPUs to workers: add --workers-on ray, or leave --gpus out")
        if self.skip_clean is not None and not 1 <= self.skip_clean <= 5:  # NaN, too
            raise CorpusError(f"skip_clean must be a DNSMOS from 1 to 5, got {self.skip_clean}")
        if not 0 <= self.gpus < math.inf:
            raise CorpusError(f"gpus must be 0 or more, got {self.gpus}")
        for name in ("workers", "files_per_tar"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise CorpusError(f"{name} must be 1 or more, got {number}")
        if self.out_url is not None and self.journal is None:
            raise CorpusError(
                f"{self.out_url!r} cannot hold the journal, which grows: give a local file with --journal"
            )
        if self.out_url is None and self.journal is not None:
            raise CorpusError("the journal of a local output folder is kept in that folder: leave --journal out")

    @property
    def scores(self) -> bool:
        """Whether files are scored with DNSMOS."""
        return self.dnsmos or self.skip_clean is not None

    @property
    def out_url(self) -> str | None:
        """URL of the output folder; None for a local folder."""
        return str(self.out).rstrip("/") if is_remote(str(self.out)) else None

    @property
    def out_folder(self) -> Path | None:
        """The output folder; None for a URL."""
        return Path(self.out) if self.out_url is None else None

    @property
    def journal_path(self) -> Path:
        """Path of the journal."""
        if self.journal is not None:
            return Path(self.journal)
        return Path(self.out) / f"{JOURNAL_NAME}{self.shard.suffix}.jsonl"

    def read_inputs(self) -> Inputs:
        """Read the inputs of this job's shard.

        Raises:
            CorpusError: See `plan.read_inputs`, or the package for a kind of storage is missing.
            MissingExtraError: fsspec is not installed, and a path is a URL.
        """
        every = read_inputs(str(self.inputs), str(self.out))
        recordings = [recording for recording in every.recordings if self.shard.holds(recording.output)]
        check_protocols([*(recording.source for recording in recordings), str(self.out)])
        left_out = {path: reason for path, reason in every.left_out.items() if self.shard.holds(path)}
        return replace(every, recordings=recordings, left_out=left_out)

    def tasks(self, recordings: Sequence[Recording]) -> list[Task]:
        """Divide recordings into what workers do at a time: a file, or a tar.

        Raises:
            AudioError: Two files of a tar would have one name.
        """
        if self.files_per_tar is None:
            return list(one_by_one(recordings))
        return list(in_tars(recordings, self.files_per_tar, self.shard))

    def settings(self, recordings: Sequence[Recording], denoiser: Denoiser) -> dict[str, Any]:
        """Return everything that determines the outputs, as the journal records it.

        A journal can be resumed only with equal settings, so keys and values must stay as they are.

        Args:
            recordings: Those of the job.
            denoiser: A denoiser with the options of the job.
        """
        options = self.denoiser
        chosen = {
            "calibration": options.calibration,
            "attenuation_limit_db": options.attenuation_limit_db,
            "high_band": options.high_band,
            "windowing": None if options.windowing == Windowing() else options.windowing,
        }
        files = self.files_per_tar
        return {
            "version": _OUTPUTS_SINCE,
            "inputs": str(self.inputs) if is_remote(str(self.inputs)) else str(Path(self.inputs).resolve()),
            "shard": f"{self.shard.number}/{self.shard.count}",
            "model": str(options.model),
            **{name: str(value) for name, value in chosen.items() if value is not None},
            "model_sha256": sha256_of(denoiser.model_path),
            "backend": denoiser.backend,
            "precision": denoiser.precision,
            "dnsmos": self.dnsmos,
            "skip_clean": self.skip_clean,
            # The content of a tar depends on all files before it.
            "tars": None if files is None else f"{files} files each of {digest_of(accepted(recordings))}",
        }
