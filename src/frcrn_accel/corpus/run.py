"""Run a job over many files, from its inputs to its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

from frcrn_accel.corpus.job import RAY, CorpusJob
from frcrn_accel.corpus.journal import Journal
from frcrn_accel.corpus.local import run_local
from frcrn_accel.corpus.plan import Task
from frcrn_accel.corpus.report import CorpusReport
from frcrn_accel.corpus.sizing import choose_sharing, with_threads
from frcrn_accel.corpus.storage import digest_of_remote, names_in
from frcrn_accel.corpus.work import Result, Work, failed
from frcrn_accel.errors import AudioError, CorpusError
from frcrn_accel.progress import Progress, no_progress
from frcrn_accel.quality.ratings import load_dnsmos

__all__ = ["denoise_corpus"]


def denoise_corpus(
    job: CorpusJob,
    progress: Callable[[CorpusReport], None] = lambda report: None,
    *,
    preparing: Progress = no_progress,
) -> CorpusReport:
    """Denoise many files, or resume a job that was stopped.

    Args:
        job: The job.
        progress: Called before the first file and after each, with the report so far.
        preparing: Called while a file that the backend needs is made, see `Denoiser`.

    Raises:
        CorpusError: The job cannot start, or has to stop. Run it again to resume.
        MissingExtraError: Packages are missing, for URLs, Ray or DNSMOS.
        FrcrnAccelError: See `Denoiser`.
    """
    job.check()
    if job.scores:
        load_dnsmos()
    inputs = job.read_inputs()
    recordings = inputs.recordings
    tasks = job.tasks(recordings)
    with with_threads(job.denoiser, 1).open(progress=preparing) as denoiser:  # here first, to report its errors
        about = f"{denoiser.model.name} on {denoiser.backend}, {denoiser.precision} ({denoiser.device})"
        settings = job.settings(recordings, denoiser)
    refused = [recording for recording in recordings if recording.refusal is not None]
    with _open_journal(job, tasks, settings) as journal:
        if job.verify:
            journal.verify(None if job.out_url is None else partial(digest_of_remote, job.out_url))
        left = [task for task in tasks if not journal.has(task)]
        before = len(recordings) - len(refused) - sum(len(task.recordings) for task in left)
        report = CorpusReport(about, len(recordings), before)
        report.left_out, report.other_suffixes = dict(inputs.left_out), dict(inputs.other_suffixes)
        report.other_formats = dict(inputs.other_formats)
        report.damaged = [task.output for task in left if journal.is_damaged(task.output)]
        _record([failed(Task(one.output, (one,)), str(one.refusal)) for one in refused], journal, report)
        _run(job, left, journal, report, progress)
    return report


def _open_journal(job: CorpusJob, tasks: Sequence[Task], settings: Mapping[str, Any]) -> Journal:
    """Open the journal of a job."""
    outputs = {task.output for task in tasks}
    return Journal(
        job.journal_path,
        job.out_folder,
        settings,
        restart=job.overwrite,
        existing_outputs=lambda: set() if job.out_url is None else outputs & names_in(job.out_url),
    )


def _run(
    job: CorpusJob,
    tasks: Sequence[Task],
    journal: Journal,
    report: CorpusReport,
    progress: Callable[[CorpusReport], None],
) -> None:
    """Run tasks and record their results."""
    began = time.perf_counter()
    todo = _refuse_existing(tasks, journal, report)
    if not todo:
        progress(report)
        return
    batches, report.workers = _start_workers(job, todo, journal)
    with closing(batches):
        progress(report)
        for results in batches:
            report.wall_s = time.perf_counter() - began
            _record(results, journal, report)
            progress(report)


def _refuse_existing(tasks: Sequence[Task], journal: Journal, report: CorpusReport) -> list[Task]:
    """Record tasks whose output exists and is not of this job, or cannot exist, as failed; return the others."""
    refused = []
    for task in tasks:
        try:
            if journal.would_overwrite(task.output):
                message = "exists already: start over with --overwrite to replace it"
                refused.append(failed(task, f"{task.output!r} {message}"))
        except AudioError as error:
            refused.append(failed(task, str(error)))
    _record(refused, journal, report)
    outputs = {result.output for result in refused}
    return [task for task in tasks if task.output not in outputs]


def _start_workers(
    job: CorpusJob, tasks: Sequence[Task], journal: Journal
) -> tuple[Generator[list[Result], None, None], str]:
    """Start the workers; return the results to come, and a description of the workers."""
    url, on_ray = job.out_url, job.workers_on == RAY
    parts = None if on_ray and url is not None else journal.parts  # a folder that actors need not share
    work = Work(job.denoiser, parts, url, dnsmos=job.dnsmos, skip_clean=job.skip_clean)
    if on_ray:
        from frcrn_accel.corpus.ray import run_ray

        return run_ray(tasks, work, job.workers, job.gpus)
    sharing = choose_sharing(job.denoiser, len(tasks), job.workers)
    work = replace(work, denoiser=replace(job.denoiser, threads=sharing.threads))
    return run_local(tasks, work, sharing.workers), str(sharing)


def _record(results: Sequence[Result], journal: Journal, report: CorpusReport) -> None:
    """Write results to the journal, move outputs to their names, and count them.

    Raises:
        CorpusError: The job has to stop.
    """
    for result in results:
        journal.add(result.entries)
    journal.sync()
    for result in results:
        entries = result.entries
        if result.is_made:
            try:
                journal.place(result.output)
            except AudioError as error:
                entries = tuple(replace(entry, sha256=None, bytes=None, error=str(error)) for entry in entries)
                journal.add(entries)
        for entry in entries:
            report.count(entry)
    for result in results:
        if result.stop is not None:
            raise CorpusError(f"the job stopped: {result.stop}. Nothing is lost; run the same command to resume")
