"""Names of audio files: which are audio, which a folder run leaves out, and which would be written twice."""

from __future__ import annotations

import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import soundfile

from frcrn_accel.errors import AudioError

if TYPE_CHECKING:
    from frcrn_accel.files.reading import AudioFile

__all__ = [
    "DEFAULT_NAME",
    "NOISE_NAME",
    "FolderScan",
    "LeftOut",
    "audio_files",
    "audio_suffixes",
    "check_targets",
    "detected_suffix",
    "scan_folder",
]

# Between the stem and the suffix of an output beside its input.
DEFAULT_NAME, NOISE_NAME = ".denoised", ".noise"

# The usual suffixes of what FFmpeg and libsndfile read. The content of a file decides how it is read.
# Not here: playlists, subtitles, pictures, .ts and .dat (source code and data), .raw and .pcm (no header).
# fmt: off
_AUDIO_SUFFIXES = frozenset((
    ".3g2", ".3ga", ".3gp", ".8svx", ".aa3", ".aac", ".ac3", ".adts", ".afc", ".aif", ".aifc", ".aiff", ".alac",
    ".amr", ".ape", ".asf", ".au", ".avi", ".avr", ".awb", ".bwf", ".caf", ".dff", ".divx", ".dsf", ".dss", ".dts",
    ".dtshd", ".eac3", ".ec3", ".f4a", ".f4v", ".flac", ".flv", ".gsm", ".ircam", ".loas", ".m1a", ".m2a", ".m2ts",
    ".m4a", ".m4b", ".m4p", ".m4r", ".m4v", ".mka", ".mkv", ".mlp", ".mogg", ".mov", ".mp1", ".mp2", ".mp3", ".mp4",
    ".mpa", ".mpc", ".mpeg", ".mpg", ".mpga", ".mts", ".mxf", ".nist", ".nsv", ".oga", ".ogg", ".ogm", ".ogv",
    ".ogx", ".oma", ".opus", ".paf", ".pvf", ".qt", ".ra", ".rf64", ".rm", ".rmvb", ".sd2", ".sds", ".sf", ".snd",
    ".sph", ".spx", ".svx", ".tak", ".thd", ".tta", ".vob", ".voc", ".vox", ".w64", ".wav", ".wave", ".wavex",
    ".weba", ".webm", ".wma", ".wmv", ".wtv", ".wv", ".wve", ".xi",
))
# fmt: on

# Suffixes by the names that libsndfile and FFmpeg give a container, where they differ from it.
_SUFFIX_OF_FORMAT = {
    "WAVEX": ".wav",
    "RF64": ".wav",
    "matroska": ".mka",
    "webm": ".webm",
    "mov": ".m4a",
    "mp4": ".m4a",
    "asf": ".wma",
    "mpeg": ".mpg",
    "mpegts": ".ts",
}


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that a folder run leaves out.

    Attributes:
        path: The file or folder.
        reason: Why, in a few words.
        is_error: Whether audio may have been missed because it could not be read.
    """

    path: Path
    reason: str
    is_error: bool = False


@dataclass
class FolderScan:
    """What a folder and its subfolders hold.

    Attributes:
        files: Files with the suffix of an audio format or a film, sorted.
        left_out: Files and folders that are left out, sorted.
        other_suffixes: Number of files that are not audio by their suffix, by suffix in lower case.
    """

    files: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    other_suffixes: Counter[str] = field(default_factory=Counter)


def audio_suffixes() -> set[str]:
    """Return the suffixes of the formats that can be read, in lower case, with the dot."""
    named = {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    return named | _AUDIO_SUFFIXES


def audio_files(folder: Path, *, but_not_in: Path | None = None) -> list[Path]:
    """Return the sorted files in a folder and its subfolders whose suffix is that of an audio format.

    Hidden files and outputs of this library are left out; `scan_folder` names them.

    Args:
        folder: The folder.
        but_not_in: A folder to leave out, such as that of the outputs.
    """
    return scan_folder(folder, but_not_in=but_not_in).files


def scan_folder(folder: Path, *, but_not_in: Path | None = None) -> FolderScan:
    """Find the audio files in a folder and its subfolders, and what is left out.

    Left out are hidden files and folders (such as `._x.wav` of macOS), outputs beside their inputs
    (`x.denoised.wav`), symbolic links to folders (they may lead in a circle), and what cannot be read.

    Args:
        folder: The folder.
        but_not_in: A folder to leave out without reporting it, such as that of the outputs.
    """
    scan = FolderScan()
    _walk(folder, None if but_not_in is None else but_not_in.resolve(), scan)
    scan.files.sort()
    stems = {(file.parent, file.stem) for file in scan.files}
    outputs = {
        file
        for file in scan.files
        for name in (DEFAULT_NAME, NOISE_NAME)
        if file.stem.endswith(name) and (file.parent, file.stem.removesuffix(name)) in stems
    }
    scan.files = [file for file in scan.files if file not in outputs]
    scan.left_out += [LeftOut(file, "output of an earlier run") for file in outputs]
    scan.left_out.sort(key=lambda item: item.path)
    return scan


def _walk(top: Path, but_not_in: Path | None, scan: FolderScan) -> None:
    suffixes = audio_suffixes()
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            paths = list(folder.iterdir())
        except OSError as error:
            scan.left_out.append(LeftOut(folder, f"cannot be read: {error.strerror}", is_error=True))
            continue
        for path in paths:
            is_audio = path.suffix.lower() in suffixes
            try:
                mode = path.stat().st_mode
            except OSError as error:
                reason: str | None = f"cannot be read: {error.strerror}"
                is_folder, is_error = False, True
            else:
                is_folder, is_error = stat.S_ISDIR(mode), False
                reason = None if is_folder or stat.S_ISREG(mode) else "not a regular file"
            if path.name.startswith("."):
                reason, is_error = "hidden", False
            elif is_folder and path.is_symlink():
                reason = "symbolic link to a folder"
            if is_folder and but_not_in is not None and path.resolve() == but_not_in:
                continue
            if not is_folder and not is_audio:
                scan.other_suffixes[path.suffix.lower()] += 1
            elif reason is not None:
                scan.left_out.append(LeftOut(path, reason, is_error))
            elif is_folder:
                pending.append(path)
            else:
                scan.files.append(path)


def check_targets(pairs: Iterable[tuple[str, str]]) -> None:
    """Check that all targets differ.

    Args:
        pairs: Each source with its target.

    Raises:
        AudioError: Two sources have the same target; the message names both.
    """
    sources: dict[str, str] = {}
    for source, target in pairs:
        key = _key(target)
        if key in sources:
            raise AudioError(f"{sources[key]!r} and {source!r} would both become {target!r}")
        sources[key] = source


def _key(target: str) -> str:
    """Return a name under which the system's usual file systems would find the same file."""
    if sys.platform == "darwin":  # neither case nor the Unicode form of accents matters
        return unicodedata.normalize("NFC", target).casefold()
    return target.casefold() if sys.platform == "win32" else target


def detected_suffix(file: AudioFile) -> str:
    """Return the usual suffix of the format that a file has, whatever its name says."""
    if file.subtype.lower() == "opus" and file.format.lower() == "ogg":
        return ".opus"
    names = file.format.split(",")  # FFmpeg names all containers that share a demuxer
    name = "webm" if "webm" in names and file.subtype == "opus" else names[0]
    return _SUFFIX_OF_FORMAT.get(name, f".{name.lower()}")
