"""`frcrn-accel denoise`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from frcrn_accel.cli.options import (
    AttenuationLimit,
    BackendName,
    Calibration,
    HighBandOption,
    Model,
    Precision,
    Threads,
)
from frcrn_accel.cli.progress import preparation
from frcrn_accel.cli.usage import usage_errors
from frcrn_accel.denoiser import Denoiser, DenoiserOptions
from frcrn_accel.errors import AudioError, FrcrnAccelError
from frcrn_accel.models import DEFAULT_MODEL

__all__ = ["denoise"]

Keep = Literal["speech", "noise", "both"]
STANDARD_STREAM = "-"
MAX_STDIN_BYTES = 4 << 30


@dataclass(frozen=True)
class _Job:
    """A file to denoise.

    Attributes:
        source: The file to read.
        target: The file to write.
        noise_target: Where to write the noise besides; None to leave it out.
    """

    source: Path
    target: Path
    noise_target: Path | None = None


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
            help="What to write: speech, what was taken away (NAME.noise.wav), or both (with -o X, X.noise.wav)."
        ),
    ] = "speech",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Denoise audio files: WAV, FLAC, OGG, Opus, MP3 and more, at any rate, with any number of channels."""
    console = Console(stderr=True, highlight=False)
    with ExitStack() as stack:
        paths, target = stack.enter_context(_standard_streams(inputs, output, keep))
        with usage_errors(), preparation(console) as progress:
            options = DenoiserOptions(
                model,
                backend=backend,
                precision=precision,
                calibration=calibration,
                threads=threads,
                attenuation_limit_db=attenuation_limit_db,
                high_band=high_band,
            )
            denoiser = stack.enter_context(options.open(progress=progress))
        jobs = _plan(paths, target, keep)
        console.print(
            escape(f"{denoiser.model.name} on {denoiser.backend}, {denoiser.precision} ({denoiser.device})")
        )
        failed = _run(jobs, denoiser, keep, overwrite, console, single=len(inputs) == 1 and not paths[0].is_dir())
    for source, error in failed:
        console.print(f"failed: {source}: {error}", markup=False, soft_wrap=True)
    if failed:
        console.print(f"{len(failed)} of {len(jobs)} files failed")
        raise typer.Exit(1)


def _run(
    jobs: list[_Job], denoiser: Denoiser, keep: Keep, overwrite: bool, console: Console, *, single: bool
) -> list[tuple[Path, FrcrnAccelError]]:
    """Run the jobs in turn. Return the failures, or raise the error of a `single` job."""
    failed: list[tuple[Path, FrcrnAccelError]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), _RealTimeFactor(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        for number, job in enumerate(jobs, 1):
            count = f"{number}/{len(jobs)} " if len(jobs) > 1 else ""
            bar = bars.add_task(escape(count + job.source.name), total=None)

            def show(done_s: float, total_s: float, bar: int = bar) -> None:
                bars.update(bar, completed=done_s, total=total_s)  # type: ignore[arg-type]

            try:
                _make_folder(job.target.parent)
                report = denoiser.denoise_file(
                    job.source,
                    job.target,
                    overwrite=overwrite,
                    progress=show,
                    keep="noise" if keep == "noise" else "speech",
                    noise_target=job.noise_target,
                )
            except FrcrnAccelError as error:
                if single:
                    raise
                failed.append((job.source, error))
                continue
            finally:
                bars.remove_task(bar)
            clipped = f", {report.clipped_samples} samples clipped" if report.clipped_samples else ""
            noise = "" if job.noise_target is None else f" and {job.noise_target.name}"
            console.print(
                f"{count}{job.source.name} -> {job.target.name}{noise}: {report.duration_s:.1f} s in "
                f"{report.processing_s:.1f} s, real-time factor {report.real_time_factor:.3f}{clipped}",
                markup=False,
                soft_wrap=True,
            )
    return failed


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AudioError(f"cannot create folder {str(path)!r}: {error.strerror}") from error


def _plan(paths: list[Path], output: Path | None, keep: Keep) -> list[_Job]:
    """Pair each input file with its outputs."""
    from frcrn_accel.files import audio_files, check_targets

    jobs: list[_Job] = []
    several = len(paths) > 1 or paths[0].is_dir()
    to_folder = output is not None and (several or output.is_dir())
    if to_folder and output is not None and output.exists() and not output.is_dir():
        raise AudioError(f"{str(output)!r} is a file: several inputs need a folder")
    for path in paths:
        if path.is_dir():
            if output is None:
                raise AudioError(f"{str(path)!r} is a folder: give an output folder with -o")
            found = audio_files(path, but_not_in=output)
            if not found:
                raise AudioError(f"folder {str(path)!r} contains no audio files")
            jobs += [_Job(file, output / file.relative_to(path)) for file in found]
        elif output is None:
            noise = _noise_path(path)
            speech = path.with_name(f"{path.stem}.denoised{path.suffix}")
            jobs.append(_Job(path, noise if keep == "noise" else speech, noise if keep == "both" else None))
        else:
            jobs.append(_Job(path, output / path.name if to_folder else output))
    if keep == "both" and output is not None:
        jobs = [replace(job, noise_target=_noise_path(job.target)) for job in jobs]
    targets = [
        (job.source, target) for job in jobs for target in (job.target, job.noise_target) if target is not None
    ]
    check_targets((str(source), str(target)) for source, target in targets)
    return jobs


def _noise_path(path: Path) -> Path:
    """Return the path of the noise beside a path of speech."""
    return path.with_name(f"{path.stem}.noise{path.suffix}")


@contextmanager
def _standard_streams(inputs: list[str], output: str | None, keep: Keep) -> Iterator[tuple[list[Path], Path | None]]:
    """Replace `-` by temporary files, because reading and writing audio formats needs seeking."""
    reads = STANDARD_STREAM in inputs
    writes = output == STANDARD_STREAM or (reads and output is None)
    if writes and keep == "both":
        raise AudioError("standard output takes one signal: name a file with -o to keep both")
    if (reads or writes) and len(inputs) != 1:
        raise AudioError("- cannot be combined with other inputs")
    if not reads and not writes:
        yield [Path(name) for name in inputs], Path(output) if output is not None else None
        return
    with tempfile.TemporaryDirectory(prefix="frcrn-accel-") as folder:
        source = Path(folder) / "stdin" if reads else Path(inputs[0])
        if reads:
            _spool(source)
        # The same suffix on both sides keeps the format of the input.
        target = Path(folder) / f"stdout{source.suffix}" if writes else Path(str(output))
        if writes and sys.stdout.isatty():
            raise AudioError("standard output is a terminal: redirect it, or name a file with -o")
        yield [source], target
        if writes:
            with target.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


def _spool(path: Path) -> None:
    """Copy standard input to a file."""
    size = 0
    with path.open("wb") as file:
        while chunk := sys.stdin.buffer.read(1 << 20):
            size += len(chunk)
            if size > MAX_STDIN_BYTES:
                raise AudioError(f"standard input is larger than the limit of {MAX_STDIN_BYTES >> 30} GiB")
            file.write(chunk)


class _RealTimeFactor(ProgressColumn):
    """The real-time factor (RTF) so far: processing time divided by audio time."""

    def render(self, task: Task) -> Text:
        if not task.completed or task.elapsed is None:
            return Text("RTF -----")
        return Text(f"RTF {task.elapsed / task.completed:.3f}")
