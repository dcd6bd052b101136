"""Plan a run of `frcrn-accel denoise`, and check inputs and outputs before a model is loaded."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from frcrn_accel.atomic import copy_to_device, is_device, link_in_path
from frcrn_accel.errors import AudioError, OutputExistsError

__all__ = [
    "COPY_NAME",
    "RESULT_NAME",
    "STANDARD_STREAM",
    "Job",
    "Plan",
    "Ready",
    "make_plan",
    "shown_input",
    "shown_output",
]

STANDARD_STREAM = "-"
COPY_NAME, RESULT_NAME = "input", "output"  # of the files in place of a pipe or device, before their suffixes


@dataclass(frozen=True)
class Ready:
    """A job whose input can be read and whose output can be written.

    Attributes:
        source: The file to read: the input, or a copy of a pipe or device.
        target: The file to write: the output, or one whose content goes to `device`.
        device: Device, FIFO or `-` for standard output; None if the target is the output.
        noise_target: The file to write the noise to, too; None for none.
    """

    source: Path
    target: Path
    device: str | None = None
    noise_target: Path | None = None

    def deliver(self) -> None:
        """Copy the result to the device, if there is one.

        Raises:
            AudioError: The device refuses.
            BrokenPipeError: Nobody reads the pipe any more.
        """
        if self.device is None:
            return
        try:
            if self.device == STANDARD_STREAM:
                with self.target.open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            else:
                copy_to_device(self.target, Path(self.device))
        except BrokenPipeError:
            raise
        except OSError as error:
            raise AudioError(f"{shown_output(self.device)} cannot be written: {error.strerror}") from error
        finally:
            self.target.unlink()


@dataclass(frozen=True)
class Job:
    """An input with its output.

    Attributes:
        source: The input as it was named, or as it was found in a folder.
        target: The output. None for a file beside the input, or for standard output if the input is a pipe or device.
        is_found: Whether the input was found in a folder; named inputs are checked before anything takes time.
        is_named: Whether the output was named. Otherwise it has the name of its input, with another suffix if that
            format cannot be written.
        keep: `"speech"`, `"noise"`, or `"both"` for a file each.
        track: Number of the audio track; None for all of a film, and the first of anything else.
        root: The output folder, for an input that was found in a folder: no link below it is followed.
    """

    source: str
    target: str | None
    is_found: bool = False
    is_named: bool = True
    keep: str = "speech"
    track: int | None = None
    root: str | None = None

    def check(self, folder: Path, *, overwrite: bool) -> Ready:
        """Open the header of the input and check that the output can be written.

        Args:
            folder: Folder for copies of pipes and devices.
            overwrite: Whether an existing output is replaced.

        Raises:
            AudioError: The input cannot be read, or the output cannot be written.
            OutputExistsError: The output exists, and `overwrite` is false.
        """
        from frcrn_accel.files import FILM_SUFFIXES, is_film, open_audio
        from frcrn_accel.files.film import check_film, film_suffix
        from frcrn_accel.files.formats import plan_target, writable_suffix
        from frcrn_accel.files.names import DEFAULT_NAME, NOISE_NAME, detected_suffix

        is_stream = self.source == STANDARD_STREAM or is_device(Path(self.source))
        target = STANDARD_STREAM if self.target is None and is_stream else self.target
        if target == STANDARD_STREAM and sys.stdout is None:
            raise AudioError("standard output is closed: name a file with -o")
        if target == STANDARD_STREAM and sys.stdout.isatty():
            raise AudioError("standard output is a terminal: redirect it, or name a file with -o")
        if target is not None and target != STANDARD_STREAM:
            _check_output(Path(target), overwrite, self.root)
        source = _spool(self.source, folder) if is_stream else Path(self.source)
        file = open_audio(source, self.track)
        if is_stream:
            source = source.rename(source.with_name(f"{source.name}{detected_suffix(file)}"))
            file = open_audio(source, self.track)
        film = is_film(source)
        suffix = writable_suffix(file) if source.suffix else detected_suffix(file)
        if film:
            suffix = film_suffix(source)
        device = None
        if target is None:
            output = _beside(source, NOISE_NAME if self.keep == "noise" else DEFAULT_NAME, suffix)
        elif target == STANDARD_STREAM or is_device(Path(target)):
            device, output = target, folder / f"{RESULT_NAME}{Path(target).suffix or suffix}"
        elif not source.suffix and not Path(target).suffix:
            output = Path(f"{target}{suffix}")
        elif not self.is_named and not _can_write(Path(target)):
            output = Path(target).with_suffix(suffix)
        else:
            output = Path(target)
        to_film = film and output.suffix.lower() in FILM_SUFFIXES
        if to_film:
            check_film(output, source, self.track)
        else:
            plan_target(output, file)
        noise = None
        if self.keep == "both":
            if device is not None:
                raise AudioError("speech and noise do not both fit into one output: name a file with -o")
            if to_film:
                raise AudioError("--keep both does not work for a film: run it again with --keep noise")
            noise = _beside(source if target is None else output, NOISE_NAME, output.suffix)
        for path in (output, noise):
            if path is not None and device is None:
                _check_output(path, overwrite, self.root)
                if path.exists() and path.samefile(source):
                    raise AudioError(f"{str(path)!r} is the input itself: choose another output with -o")
        return Ready(source, output, device, noise)


def shown_input(name: str) -> str:
    """Return what messages call an input."""
    return "standard input" if name == STANDARD_STREAM else repr(name)


def shown_output(name: str | None) -> str:
    """Return what messages call an output; None is that of a pipe or device."""
    return "standard output" if name in (None, STANDARD_STREAM) else repr(name)


@dataclass
class Plan:
    """The jobs of a run, and the files that it leaves out.

    Attributes:
        jobs: The jobs in their order.
        left_out: Files and folders that are left out: the path, the reason, and whether it could not be read.
        other_suffixes: Number of files in folders that are not audio, by suffix.
        is_single: Whether there is only one input, and it is not a folder.
    """

    jobs: list[Job] = field(default_factory=list)
    left_out: list[tuple[Path, str, bool]] = field(default_factory=list)
    other_suffixes: Counter[str] = field(default_factory=Counter)
    is_single: bool = False


def make_plan(inputs: list[str], output: str | None, keep: str = "speech", track: int | None = None) -> Plan:
    """Pair each input with its output.

    Raises:
        AudioError: The inputs and the output do not go together.
    """
    from frcrn_accel.files import check_targets, scan_folder

    folders = [name for name in inputs if name != STANDARD_STREAM and Path(name).is_dir()]
    several = len(inputs) > 1 or bool(folders)
    if several and STANDARD_STREAM in (*inputs, output):
        if len(inputs) > 1:
            raise AudioError("- cannot be combined with other inputs")
        raise AudioError("a folder cannot be written to standard output: give an output folder with -o")
    to_folder = output is not None and output != STANDARD_STREAM and _is_folder(output, several)
    plan = Plan(is_single=not several)
    for name in inputs:
        if name not in folders:
            target = str(Path(str(output)) / Path(name).name) if to_folder else output
            plan.jobs.append(Job(name, target, is_named=not to_folder, keep=keep, track=track))
            continue
        if output is None:
            raise AudioError(f"{name!r} is a folder: give an output folder with -o")
        if Path(output).exists() and Path(output).samefile(name):
            raise AudioError(f"{output!r} is the input folder itself: choose another output folder with -o")
        found = scan_folder(Path(name), but_not_in=Path(output))
        plan.jobs += [
            Job(
                str(file),
                str(Path(output) / file.relative_to(name)),
                is_found=True,
                is_named=False,
                keep=keep,
                track=track,
                root=output,
            )
            for file in found.files
        ]
        plan.left_out += [(item.path, item.reason, item.is_error) for item in found.left_out]
        plan.other_suffixes += found.other_suffixes
    check_targets((job.source, job.target) for job in plan.jobs if job.target is not None)
    if several:
        _check_not_inputs(plan.jobs)
    return plan


def _is_folder(output: str, several: bool) -> bool:
    """Return whether an output is a folder, which need not exist.

    Raises:
        AudioError: It is a file, or by its name would be one, and there are several inputs.
    """
    from frcrn_accel.files import audio_suffixes

    path = Path(output)
    if path.is_dir() or output.endswith(("/", os.sep)):
        return True
    if several and path.exists():
        raise AudioError(f"{output!r} is a file: several inputs need a folder")
    if several and path.suffix.lower() in audio_suffixes():
        raise AudioError(f"several inputs need a folder: end {output!r} with / if it is one")
    return several


def _check_not_inputs(jobs: Iterable[Job]) -> None:
    """Check that no output replaces an input of another job.

    Raises:
        AudioError: One does.
    """
    inputs = {os.path.realpath(job.source) for job in jobs}
    for job in jobs:
        if job.target is not None and os.path.realpath(job.target) in inputs:
            raise AudioError(f"the output {job.target!r} is also an input: choose another output with -o")


def _check_output(path: Path, overwrite: bool, root: str | None) -> None:
    """Check that a file can be created.

    Args:
        path: The file.
        overwrite: Whether an existing one is replaced.
        root: See `Job.root`.

    Raises:
        AudioError: Its folder cannot be created or written to, or it would be written through a link below `root`.
        OutputExistsError: The file exists and is not to be replaced.
    """
    if root is not None:
        _refuse_links(Path(root), path)
    if is_device(path):
        return
    if path.is_dir():
        raise OutputExistsError(f"{str(path)!r} is a folder")
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{str(path)!r} exists: choose another name, or replace it with --overwrite")
    folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise AudioError(f"cannot create folder {str(folder)!r}: {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise AudioError(f"folder {str(existing)!r} is not writable: choose another output with -o")


def _refuse_links(root: Path, path: Path) -> None:
    """Check that an output in a tree is not written through a symbolic link in that tree.

    Raises:
        AudioError: It would be.
    """
    link = path if path.is_symlink() else link_in_path(root, path.relative_to(root))
    if link is not None:
        raise AudioError(
            f"{str(path)!r} is not written: {str(link)!r} is a symbolic link, which may lead out of the output "
            "folder; replace it"
        )


def _can_write(path: Path) -> bool:
    from frcrn_accel.files.formats import writable_suffixes

    return path.suffix.lower() in writable_suffixes()


def _beside(source: Path, mark: str, suffix: str) -> Path:
    """Return a name beside a file. The stem is cut so that the longest legal name stays legal."""
    stem = source.stem
    while len(os.fsencode(f"{stem}{mark}{suffix}")) > 255:
        stem = stem[:-1]
    return source.with_name(f"{stem}{mark}{suffix}")


def _spool(name: str, folder: Path) -> Path:
    """Copy standard input, a FIFO or a device to a file, because reading audio formats needs seeking.

    Raises:
        AudioError: It cannot be read, or is larger than the limit.
    """
    from frcrn_accel.files.spool import spool

    path = folder / f"{COPY_NAME}{len(list(folder.iterdir()))}"
    try:
        if name == STANDARD_STREAM:
            if sys.stdin is None:
                raise AudioError("standard input is closed: name a file")
            spool(sys.stdin.buffer, path, shown_input(name))
        else:
            with Path(name).open("rb") as stream:
                spool(stream, path, shown_input(name))
    except OSError as error:
        raise AudioError(f"{shown_input(name)} cannot be read: {error.strerror}") from error
    return path
