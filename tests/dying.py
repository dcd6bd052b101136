"""Backends that kill their process, as the system does when memory runs out."""

from __future__ import annotations

import os
import signal
import stat
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np

from frcrn_accel import ModelFile, Session
from frcrn_accel.testing import FunctionBackend

__all__ = [
    "FIRST",
    "MARK",
    "DyingBackend",
    "DyingOnceBackend",
    "DyingWhenLoadedBackend",
    "EndingBackend",
    "OrphanedBackend",
    "OrphanedOnceBackend",
    "StallingBackend",
]

LONG_SAMPLES = 32_000  # audio of this length and more kills them
MARK = "FRCRN_ACCEL_TEST_MARK"
FIRST = "FRCRN_ACCEL_TEST_FIRST"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(audio: np.ndarray) -> np.ndarray:
    if audio.shape[-1] >= LONG_SAMPLES:
        die()
    return audio.copy()


def is_first_time() -> bool:
    """Return whether the mark, a file, is there; remove it."""
    mark = Path(os.environ[MARK])
    is_there = mark.exists()
    mark.unlink(missing_ok=True)
    return is_there


def dying_once(audio: np.ndarray) -> np.ndarray:
    return dying(audio) if audio.shape[-1] >= LONG_SAMPLES and is_first_time() else audio.copy()


class DyingBackend(FunctionBackend):
    """Dies on long audio, each time."""

    name: ClassVar[str] = "dying"

    def __init__(self) -> None:
        super().__init__(dying)


class DyingOnceBackend(FunctionBackend):
    """Dies on long audio, once."""

    name: ClassVar[str] = "dying-once"

    def __init__(self) -> None:
        super().__init__(dying_once)


class DyingWhenLoadedBackend(FunctionBackend):
    """Dies while it loads a model, except in the first process."""

    name: ClassVar[str] = "dying-when-loaded"

    def load(self, model: ModelFile, threads: int) -> Session:
        if os.environ[FIRST] != str(os.getpid()):
            die()
        return super().load(model, threads)


def orphaned(audio: np.ndarray) -> np.ndarray:
    """Kill the process that started this one: under Ray, the actor."""
    if audio.shape[-1] >= LONG_SAMPLES:
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return audio.copy()


def orphaned_once(audio: np.ndarray) -> np.ndarray:
    return orphaned(audio) if audio.shape[-1] >= LONG_SAMPLES and is_first_time() else audio.copy()


class OrphanedBackend(FunctionBackend):
    """Kills its parent process on long audio, each time."""

    name: ClassVar[str] = "orphaned"

    def __init__(self) -> None:
        super().__init__(orphaned)


class OrphanedOnceBackend(FunctionBackend):
    """Kills its parent process on long audio, once."""

    name: ClassVar[str] = "orphaned-once"

    def __init__(self) -> None:
        super().__init__(orphaned_once)


def ending(audio: np.ndarray) -> np.ndarray:
    """Crash on audio of about 2 s, and stop on longer audio once."""
    if audio.shape[-1] >= 2 * LONG_SAMPLES:
        if is_first_time():
            os.kill(os.getpid(), signal.SIGSTOP)
    elif audio.shape[-1] >= LONG_SAMPLES:
        os.kill(os.getpid(), signal.SIGSEGV)
    return audio.copy()


class EndingBackend(FunctionBackend):
    """Crashes on long audio, and stops on longer audio once."""

    name: ClassVar[str] = "ending"

    def __init__(self) -> None:
        super().__init__(ending)


def stalling(audio: np.ndarray) -> np.ndarray:
    """Stop on long audio, once, after a quarter of the size of a message was sent."""
    if audio.shape[-1] >= LONG_SAMPLES and is_first_time():
        for number in range(3, 64):
            with suppress(OSError):
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    os.write(number, b"\0")
        os.kill(os.getpid(), signal.SIGSTOP)
    return audio.copy()


class StallingBackend(FunctionBackend):
    """Stops in the middle of a message on long audio, once."""

    name: ClassVar[str] = "stalling"

    def __init__(self) -> None:
        super().__init__(stalling)
