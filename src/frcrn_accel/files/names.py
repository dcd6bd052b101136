"""Names of audio files: which are audio, and which would be written twice."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import soundfile

from frcrn_accel.errors import AudioError

__all__ = ["CONTAINERS", "audio_files", "audio_suffixes", "check_targets"]

CONTAINERS = {".aif": "AIFF", ".oga": "OGG", ".opus": "OGG"}  # other suffixes are the container's name


def audio_suffixes() -> set[str]:
    """Return the suffixes of the formats that can be read and written, in lower case, with the dot."""
    return {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"} | CONTAINERS.keys()


def audio_files(folder: Path, *, but_not_in: Path | None = None) -> list[Path]:
    """Return the sorted files in a folder and its subfolders whose suffix is that of an audio format.

    Args:
        folder: The folder.
        but_not_in: A folder to leave out, such as that of the outputs.
    """
    suffixes = audio_suffixes()
    left_out = None
    if but_not_in is not None and but_not_in.resolve().is_relative_to(folder.resolve()):
        left_out = folder / but_not_in.resolve().relative_to(folder.resolve())
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and left_out not in path.parents and path.is_file()
    )


def check_targets(pairs: Iterable[tuple[str, str]]) -> None:
    """Check that all targets differ.

    Args:
        pairs: Each source with its target.

    Raises:
        AudioError: Two sources have the same target; the message names both.
    """
    sources: dict[str, str] = {}
    for source, target in pairs:
        if target in sources:
            raise AudioError(f"{sources[target]!r} and {source!r} would both become {target!r}")
        sources[target] = source
