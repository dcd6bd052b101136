"""A job over many files, from its inputs to its report."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from frcrn_accel._version import __version__
from frcrn_accel.corpus.journal import Entry, Journal
from frcrn_accel.corpus.local import run_local
from frcrn_accel.corpus.plan import JOURNAL_NAME, Job, Shard, Task, in_tars, one_by_one, read_inputs
from frcrn_accel.corpus.sizing import choose_sharing
from frcrn_accel.corpus.storage import check_protocols, is_remote, names_in
from frcrn_accel.corpus.work import Result, Work, failed
from frcrn_accel.denoiser import Denoiser
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import CorpusError
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.quality.metrics import load_dnsmos

__all__ = ["CorpusReport", "denoise_corpus"]

_ENGINES = ("local", "ray")


@dataclass
class CorpusReport:
    """How far a job is, and in the end what became of it.

    Attributes:
        engine: What denoises, in words.
        files: Files of the job, or of its shard.
        before: How many of them an earlier run had done.
        done: How many were done since.
        copied: How many of these were clean, and copied as they are.
        failed: Outputs that failed since, in a tar its members, and why.
        audio_s: Audio that was done since.
        clipped_files: Files in which samples were clipped.
        clipped_samples: Samples that were.
        wall_s: Time since the first file was begun.
    """

    engine: str
    files: int
    before: int
    done: int = 0
    copied: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    audio_s: float = 0.0
    clipped_files: int = 0
    clipped_samples: int = 0
    wall_s: float = 0.0

    @property
    def real_time_factor(self) -> float | None:
        """Time of the whole job over its audio; None before there is any."""
        return self.wall_s / self.audio_s if self.audio_s else None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "failed": dict(self.failed), "real_time_factor": self.real_time_factor}

    def count(self, entry: Entry) -> None:
        """Take in what became of a file."""
        if entry.error is not None:
            self.failed[entry.member or entry.output] = entry.error
            return
        self.done += 1
        self.copied += entry.copied
        self.audio_s += entry.duration_s or 0.0
        self.clipped_files += entry.clipped_samples > 0
        self.clipped_samples += entry.clipped_samples


def denoise_corpus(
    inputs: str | Path,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    *,
    engine: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    gpus: float = 0,
    shard: Shard = Shard(),  # noqa: B008 - it cannot be changed
    files_per_tar: int | None = None,
    dnsmos: bool = False,
    skip_clean: float | None = None,
    journal: str | Path | None = None,
    overwrite: bool = False,
    progress: Callable[[CorpusReport], None] = lambda report: None,
) -> CorpusReport:
    """Denoise many files, and go on where an earlier run of the same job stopped.

    Args:
        inputs: A folder, a list or a manifest, see `plan.read_inputs`.
        out: Folder of the outputs, with the tree of the inputs.
        options: Arguments of `Denoiser`, but `threads`; a backend by its name.
        engine: `"local"` for processes on this machine, `"ray"` for a Ray cluster (`frcrn_accel.corpus.ray`).
        workers: Processes or actors, with one denoiser each; None takes what suits this machine or cluster.
        threads: CPU threads of each.
        gpus: GPUs of each, of Ray's; a share, too.
        shard: The part of the job to do, where several machines share it.
        files_per_tar: Write WebDataset shards of so many files instead of a file for each; None for files.
        dnsmos: Score each file before and after with DNSMOS.
        skip_clean: Copy files that have at least this DNSMOS OVRL as they are.
        journal: The journal, where `out` is a URL; otherwise it is in `out`.
        overwrite: Begin anew: drop the journal of an earlier run, and replace outputs that are there.
        progress: Told before the first file and after each of what there is so far.

    Raises:
        CorpusError: The job cannot be begun, or cannot go on. Run again, it goes on where it was.
        FrcrnAccelError: What `Denoiser` raises.
    """
    options = {"model": DEFAULT_MODEL, **(options or {})}
    url = str(out).rstrip("/") if is_remote(str(out)) else None
    folder = Path(out) if url is None else None
    _check_arguments(engine, url, gpus, journal)
    if dnsmos or skip_clean is not None:
        load_dnsmos()
    jobs = [job for job in read_inputs(str(inputs), str(out)) if shard.holds(job.output)]
    check_protocols([*(job.source for job in jobs), str(out)])
    tasks = list(one_by_one(jobs) if files_per_tar is None else in_tars(jobs, files_per_tar, shard))
    with Denoiser(**options, threads=threads or 1) as denoiser:  # in this process first, for its errors
        about = f"{denoiser.model.name} on {denoiser.backend}, {denoiser.precision} ({denoiser.device})"
        settings = {
            "version": __version__,
            "inputs": str(inputs) if is_remote(str(inputs)) else str(Path(inputs).resolve()),
            "shard": f"{shard.number}/{shard.count}",
            **{name: str(value) for name, value in options.items() if value is not None and name != "batch_size"},
            "model_sha256": sha256_of(denoiser.model_path),
            "backend": denoiser.backend,
            "precision": denoiser.precision,
            "dnsmos": dnsmos,
            "skip_clean": skip_clean,
            # What is in a tar depends on all files before it.
            "tars": None if files_per_tar is None else f"{files_per_tar} files each of {_digest_of(jobs)}",
        }
    path = Path(out) / f"{JOURNAL_NAME}{shard.suffix}.jsonl" if journal is None else Path(journal)
    names = {task.output for task in tasks}
    with Journal(
        path,
        folder,
        settings,
        begin_anew=overwrite,
        find_others=lambda: set() if url is None else names & names_in(url),
    ) as kept:
        left = [task for task in tasks if not kept.has(task)]
        report = CorpusReport(about, len(jobs), len(jobs) - sum(len(task.jobs) for task in left))
        there = {task.output for task in left if kept.forbids(task.output)}
        refused = [
            failed(task, f"{task.output!r} exists: begin anew with --overwrite")
            for task in left
            if task.output in there
        ]
        left = [task for task in left if task.output not in there]
        work = Work(
            options,
            kept.parts if engine == "local" or url is None else None,
            url,
            dnsmos=dnsmos,
            skip_clean=skip_clean,
        )
        began = time.perf_counter()
        _take(refused, kept, report)
        if not left:
            progress(report)
            return report
        batches, shares = _begin(engine, left, work, workers, threads, gpus)
        report.engine += f", {shares}"
        with closing(batches):
            progress(report)
            for results in batches:
                report.wall_s = time.perf_counter() - began
                _take(results, kept, report)
                progress(report)
    return report


def _begin(
    engine: str, tasks: Sequence[Task], work: Work, workers: int | None, threads: int | None, gpus: float
) -> tuple[Generator[list[Result], None, None], str]:
    """Let an engine begin; results to come, and how it shares out the machines, in words."""
    if engine == "local":
        sharing = choose_sharing(work.options, len(tasks), workers, threads)
        work = replace(work, options={**work.options, "threads": sharing.threads})
        shares = f"{sharing.workers} worker(s) x {sharing.threads} thread(s)"
        return run_local(tasks, work, sharing.workers), shares
    from frcrn_accel.corpus.ray import run_ray

    return run_ray(tasks, work, workers, threads, gpus)


def _take(results: Sequence[Result], journal: Journal, report: CorpusReport) -> None:
    """Write down what has come, and put it in its place.

    Raises:
        CorpusError: The job cannot go on.
    """
    for result in results:
        journal.add(result.entries)
    journal.sync()
    for result in results:
        if result.is_made:
            journal.place(result.output)
        for entry in result.entries:
            report.count(entry)
    for result in results:
        if result.stop is not None:
            raise CorpusError(f"the job cannot go on: {result.stop}; nothing is lost, and run again it goes on")


def _check_arguments(engine: str, url: str | None, gpus: float, journal: str | Path | None) -> None:
    """Arguments that would be without effect are errors."""
    if engine not in _ENGINES:
        raise CorpusError(f"no engine {engine!r}: there are {', '.join(_ENGINES)}")
    if engine != "ray" and gpus:
        raise CorpusError("GPUs are shared out by Ray: give engine 'ray', or no GPUs")
    if url is not None and journal is None:
        raise CorpusError(f"{url!r} cannot hold the journal, which grows by lines: give a local file for it")
    if url is None and journal is not None:
        raise CorpusError("the journal of a local folder is in it: give none")


def _digest_of(jobs: Sequence[Job]) -> str:
    names = "\n".join(f"{job.source}\t{job.output}" for job in jobs)
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]
