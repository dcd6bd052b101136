"""`frcrn-accel corpus`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from frcrn_accel.cli.options import (
    AttenuationLimit,
    BackendName,
    BatchSize,
    Calibration,
    HighBandOption,
    Model,
    Precision,
)
from frcrn_accel.cli.output import report_file, write_json
from frcrn_accel.cli.progress import preparation_log, print_line
from frcrn_accel.cli.usage import usage_errors
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.posix_signals import handled
from frcrn_accel.progress import Progress as Preparing

if TYPE_CHECKING:
    from frcrn_accel.corpus import CorpusReport

__all__ = ["corpus", "job_progress"]

_SHOWN = 20  # warnings and files left out: there can be a million, and the journal has all warnings


def corpus(
    inputs: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help='A folder; a .txt list of files; or a .jsonl manifest with "input", and optionally "output".',
        ),
    ],
    out: Annotated[
        str, typer.Argument(metavar="OUT", help="Output folder: the same tree, and a journal, corpus.jsonl.")
    ],
    model: Model = DEFAULT_MODEL,
    backend: BackendName = "auto",
    precision: Precision = None,
    calibration: Calibration = None,
    attenuation_limit_db: AttenuationLimit = None,
    high_band: HighBandOption = "follow",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Files at a time. [default: one for each CPU, if memory allows]")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of each worker. [default: the CPUs, shared out]")
    ] = None,
    batch_size: BatchSize = None,
    shard: Annotated[str, typer.Option(metavar="N/COUNT", help="Do only this part of the job, e.g. 3/16.")] = "1/1",
    dnsmos: Annotated[bool, typer.Option("--dnsmos", help="Score each file before and after with DNSMOS.")] = False,
    skip_clean: Annotated[
        float | None,
        typer.Option(metavar="MOS", min=1, max=5, help="Copy files with at least this DNSMOS OVRL unchanged."),
    ] = None,
    tar: Annotated[
        int | None,
        typer.Option(
            metavar="FILES", min=1, help="Write WebDataset tars of this many files. [default: separate files]"
        ),
    ] = None,
    workers_on: Annotated[
        str, typer.Option(metavar="local|ray", help="Run workers on this machine, or on a Ray cluster.")
    ] = "local",
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each worker on Ray; may be a fraction.")] = 0,
    journal: Annotated[
        Path | None, typer.Option(metavar="J.jsonl", help="The journal, if OUT is a URL. [default: in OUT]")
    ] = None,
    report: Annotated[Path | None, typer.Option("--json", metavar="R.json", help="Write the final report.")] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Check the digests of outputs of earlier runs first; make damaged ones again."),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace existing outputs, the journal and R.json: start over."),
    ] = False,
) -> None:
    """Denoise many files. Run the same command to resume a job that was stopped or killed."""
    from frcrn_accel.corpus import CorpusJob, Shard, denoise_corpus
    from frcrn_accel.denoiser import DenoiserOptions

    with usage_errors():
        denoiser = DenoiserOptions(
            model=model,
            backend=backend,
            precision=precision,
            calibration=calibration,
            threads=threads,
            attenuation_limit_db=attenuation_limit_db,
            high_band=high_band,
            batch_size=batch_size,
        )
    job = CorpusJob(
        inputs,
        out,
        denoiser,
        shard=Shard.parse(shard),
        files_per_tar=tar,
        dnsmos=dnsmos,
        skip_clean=skip_clean,
        workers_on=workers_on,
        workers=workers,
        gpus=gpus,
        journal=journal,
        verify=verify,
        overwrite=overwrite,
    )
    console = Console(stderr=True, highlight=False)
    latest: CorpusReport | None = None
    stopped_by = int(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal stopped_by
        stopped_by = number
        raise KeyboardInterrupt

    with report_file(report, overwrite) as path:
        try:
            # SIGTERM stops the job like Ctrl-C, but for the exit code: 128 plus the number, as a shell reports it.
            with (
                handled(stop, signal.SIGTERM),
                preparation_log(console),
                job_progress(console) as (show, preparing),
            ):

                def update(so_far: CorpusReport) -> None:
                    nonlocal latest
                    latest = so_far
                    show(so_far)

                with usage_errors():
                    latest = denoise_corpus(job, update, preparing=preparing)
        except KeyboardInterrupt:
            if latest is not None:
                _print_summary(latest, console)
            print_line(console, "stopped; run the same command to resume")
            raise typer.Exit(128 + stopped_by) from None
        write_json(path, latest.to_json())
    _print_lines(
        [f"not written: {old}: such files become {new}" for old, new in latest.other_formats.items()], console
    )
    _print_lines([f"left out: {path}: {reason}" for path, reason in latest.left_out.items()], console, _SHOWN)
    _print_lines([f"warning: {text}" for texts in latest.warnings.values() for text in texts], console, _SHOWN)
    _print_lines([f"damaged: {output}: made again" for output in latest.damaged], console)
    _print_lines([f"failed: {output}: {error}" for output, error in latest.failed.items()], console)
    _print_summary(latest, console)
    if latest.failed:
        raise typer.Exit(1)


def _print_lines(lines: Sequence[str], console: Console, shown: int | None = None) -> None:
    """Print lines, or the first of them and how many there are."""
    for line in lines[:shown]:
        print_line(console, line)
    if shown is not None and len(lines) > shown:
        print_line(console, f"and {len(lines) - shown} more")


def _print_summary(report: CorpusReport, console: Console) -> None:
    """Print the result of a job on one line."""
    factor = report.real_time_factor
    parts = [
        f"{report.before + report.done} of {report.files} files done",
        f"{report.before} of them before" if report.before else "",
        f"{len(report.failed)} failed" if report.failed else "",
        f"{report.copied} clean and copied" if report.copied else "",
        f"{_duration(report.audio_s)} of audio in {_duration(report.wall_s)}" if report.audio_s else "",
        f"real-time factor {factor:.4f}" if factor is not None else "",
        f"{report.clipped_samples} samples clipped in {report.clipped_files} files" if report.clipped_files else "",
        f"{len(report.warnings)} with warnings" if report.warnings else "",
        f"{len(report.left_out)} left out" if report.left_out else "",
        f"{sum(report.other_suffixes.values())} not audio" if report.other_suffixes else "",
    ]
    print_line(console, ", ".join(part for part in parts if part))


def _duration(time_s: float) -> str:
    return f"{time_s / 3600:.1f} h" if time_s >= 3600 else f"{time_s:.1f} s"


@contextmanager
def job_progress(console: Console) -> Iterator[tuple[Callable[[CorpusReport], None], Preparing]]:
    """Yield a function that shows a report, and one that shows what is prepared before the first file.

    A report is a line with the denoiser and the workers, and a bar on a terminal.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=None)
        is_first = True

        def show(report: CorpusReport) -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                described = [text for text in (report.denoiser, report.workers) if text]
                print_line(console, ", ".join(described))
            factor = report.real_time_factor
            texts = [f"RTF {factor:.4f}"] if factor is not None else []
            texts += [f"{len(report.failed)} failed"] if report.failed else []
            bars.update(
                bar,
                total=report.files - report.before,
                completed=report.done + len(report.failed),
                description=", ".join(texts),
            )

        def prepare(what: str, done: int, total: int) -> None:
            bars.update(bar, total=total, completed=done, description=what)

        yield show, prepare
