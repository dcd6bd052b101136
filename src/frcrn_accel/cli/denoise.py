"""`frcrn-accel denoise`."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frcrn_accel.atomic import remove_leftovers
from frcrn_accel.cli.inputs import COPY_NAME, RESULT_NAME, Job, Plan, Ready, make_plan, shown_input, shown_output
from frcrn_accel.cli.options import (
    AttenuationLimit,
    BackendName,
    Calibration,
    HighBandOption,
    Model,
    Precision,
    Threads,
)
from frcrn_accel.cli.progress import preparation, print_line, terminal
from frcrn_accel.cli.usage import usage_errors
from frcrn_accel.denoiser import Denoiser, DenoiserOptions
from frcrn_accel.errors import AudioError, AudioWarning, FrcrnAccelError
from frcrn_accel.models import DEFAULT_MODEL
from frcrn_accel.posix_signals import stopping
from frcrn_accel.printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

__all__ = ["denoise"]

Keep = Literal["speech", "noise", "both"]


def denoise(
    inputs: Annotated[
        list[str], typer.Argument(metavar="IN", help="Audio files or folders, or - for standard input.")
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT|DIR",
            help="File, folder for several files, or - for standard output. [default: NAME.denoised.wav and so on, "
            "next to each input]",
        ),
    ] = None,
    model: Model = DEFAULT_MODEL,
    backend: BackendName = "auto",
    precision: Precision = None,
    calibration: Calibration = None,
    threads: Threads = None,
    attenuation_limit_db: AttenuationLimit = None,
    high_band: HighBandOption = "follow",
    keep: Annotated[
        Keep,
        typer.Option(
            help="What to write: the speech, the removed noise (NAME.noise.wav), or both (with -o X, X.noise.wav)."
        ),
    ] = "speech",
    track: Annotated[
        int | None,
        typer.Option(min=0, help="Audio track to denoise, from 0. [default: all of a film; else the first]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Denoise recordings and films: WAV, FLAC, MP3, Ogg, M4A, MP4, MKV and more, with all their channels.

    From a film to a film, the sound is replaced, and picture, subtitles and the rest are copied.
    """
    console = terminal()
    with usage_errors():
        options = DenoiserOptions(
            model,
            backend=backend,
            precision=precision,
            calibration=calibration,
            threads=threads,
            attenuation_limit_db=attenuation_limit_db,
            high_band=high_band,
        )
    with stopping() as check_stop, tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
        run = _Run(make_plan(inputs, output, keep, track), Path(folder), overwrite, console, check_stop)
        run.check_named()
        run.denoise(options)
    run.report()


@dataclass
class _Run:
    """Denoises the files of a plan in turn. The error of a single input is raised; others are collected."""

    plan: Plan
    folder: Path
    overwrite: bool
    console: Console | None
    check_stop: Callable[[], None]
    ready: dict[Job, Ready] = field(default_factory=dict)
    failed: dict[Job, FrcrnAccelError] = field(default_factory=dict)
    outputs: dict[str, Job] = field(default_factory=dict)
    cleaned: set[Path] = field(default_factory=set)

    def check_named(self) -> None:
        """Check the named inputs before anything takes time; those found in folders are checked in turn."""
        for job in self.plan.jobs:
            if not job.is_found:
                self._check(job)

    def denoise(self, options: DenoiserOptions) -> None:
        """Denoise the files; the model is loaded for the first that can be read and written."""
        jobs = self.plan.jobs
        denoiser: Denoiser | None = None
        with ExitStack() as stack:
            bars: Progress | None = None
            for number, job in enumerate(jobs, 1):
                ready = self._check(job)
                if ready is None:
                    continue
                if denoiser is None:
                    denoiser = stack.enter_context(self._open(options))
                if bars is None and self.console is not None:
                    from frcrn_accel.cli.file_bars import file_bars

                    bars = stack.enter_context(file_bars(self.console))
                self._denoise(job, ready, denoiser, bars, f"{number}/{len(jobs)} " if len(jobs) > 1 else "")

    def report(self) -> None:
        """Name what failed and what was left out.

        Raises:
            typer.Exit: Something failed, could not be read, or nothing was done.
        """
        plan = self.plan
        for path, reason, _ in plan.left_out:
            self._print(f"left out: {path}: {reason}")
        if plan.left_out:
            self._print(f"{len(plan.left_out)} left out")
        if plan.other_suffixes:
            counts = ", ".join(f"{suffix or 'no suffix'} {n}" for suffix, n in sorted(plan.other_suffixes.items()))
            self._print(f"not audio: {counts}")
        for job, error in self.failed.items():
            self._print(f"failed: {job.source}: {error}")
        if self.failed:
            self._print(f"{len(self.failed)} of {len(plan.jobs)} files failed")
        if not plan.jobs:
            raise AudioError("the input contains no audio files")
        if self.failed or any(is_error for *_, is_error in plan.left_out):
            raise typer.Exit(1)

    def _print(self, line: str) -> None:
        print_line(self.console, line)

    def _check(self, job: Job) -> Ready | None:
        """Return a checked job; None if it failed."""
        if job not in self.ready and job not in self.failed:
            with self._collecting(job):
                ready = job.check(self.folder, overwrite=self.overwrite)
                self._claim(job, ready)
                self.ready[job] = ready
        return self.ready.get(job)

    def _claim(self, job: Job, ready: Ready) -> None:
        """Check that no other job writes the outputs of this one: another suffix may have made two names the same.

        Raises:
            AudioError: Another job does.
        """
        for path in (ready.target, ready.noise_target):
            if path is not None and ready.device is None:
                other = self.outputs.setdefault(os.path.realpath(path), job)
                if other is not job:
                    raise AudioError(f"{other.source!r} and {job.source!r} would both become {str(path)!r}")

    @contextmanager
    def _collecting(self, job: Job) -> Iterator[None]:
        try:
            yield
        except FrcrnAccelError as error:
            from frcrn_accel.files.spool import rename

            rename(error, partial(self._without_copies, job))
            if self.plan.is_single:
                raise
            self.failed[job] = error

    def _without_copies(self, job: Job, text: str) -> str:
        """Return a message with the pipes and devices that the user named, not the files in their place."""
        names = {COPY_NAME: shown_input(job.source), RESULT_NAME: shown_output(job.target)}
        file = re.escape(repr(str(self.folder / "_"))[:-2]) + rf"({'|'.join(names)})[^']*'"
        return re.sub(file, lambda found: names[found[1]], text)

    @contextmanager
    def _open(self, options: DenoiserOptions) -> Iterator[Denoiser]:
        with ExitStack() as stack:
            with usage_errors(), preparation(self.console) as progress:
                denoiser = stack.enter_context(options.open(progress=progress))
            self._print(f"{denoiser.model.name} on {denoiser.backend}, {denoiser.precision} ({denoiser.device})")
            yield denoiser

    def _denoise(self, job: Job, ready: Ready, denoiser: Denoiser, bars: Progress | None, count: str) -> None:
        name, output = Path(job.source).name, ready.target.name if ready.device is None else ready.device
        if ready.noise_target is not None:
            output = f"{output} and {ready.noise_target.name}"
        with (
            self._bar(bars, count + name) as show,
            self._collecting(job),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", AudioWarning)  # the report has them
            self._prepare_folder(ready.target.parent)
            report = denoiser.denoise_file(
                ready.source,
                ready.target,
                overwrite=self.overwrite,
                progress=show,
                keep="noise" if job.keep == "noise" else "speech",
                noise_target=ready.noise_target,
                track=job.track,
            )
            ready.deliver()
            clipped = f", {report.clipped_samples} samples clipped" if report.clipped_samples else ""
            self._print(
                f"{count}{name} -> {output}: {report.duration_s:.1f} s in {report.processing_s:.1f} s, "
                f"real-time factor {report.real_time_factor:.3f}{clipped}"
            )
            for notice in report.warnings:
                self._print(f"warning: {self._without_copies(job, notice)}")

    @contextmanager
    def _bar(self, bars: Progress | None, text: str) -> Iterator[Callable[[float, float], None]]:
        """Yield the progress callback of a file: it moves its bar, if there is one, and ends the run on a signal."""
        bar = None if bars is None else bars.add_task(printable(text), total=None)

        def show(done_s: float, total_s: float) -> None:
            self.check_stop()
            if bars is not None and bar is not None:
                bars.update(bar, completed=done_s, total=total_s)

        try:
            yield show
        finally:
            if bars is not None and bar is not None:
                bars.remove_task(bar)

    def _prepare_folder(self, folder: Path) -> None:
        """Create the folder of an output. Remove from it what a killed process has left there."""
        if folder in self.cleaned:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AudioError(f"cannot create folder {str(folder)!r}: {error.strerror}") from error
        remove_leftovers(folder)
        self.cleaned.add(folder)
