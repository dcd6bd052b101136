"""Microphone and speaker, by sounddevice, which is PortAudio."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.adapters.feed import Feed
from frcrn_accel.adapters.playout import Playout
from frcrn_accel.errors import MissingExtraError, SoundCardError

__all__ = ["Device", "find_device", "list_devices", "sound_card"]

_INSTALL_PORTAUDIO = {
    "linux": "install it: `apt install libportaudio2` (Debian, Ubuntu), `dnf install portaudio` (Fedora)",
    "darwin": "install it: `brew install portaudio`",
}
_BLOCK_S = 0.01


@dataclass(frozen=True)
class Device:
    """A device that PortAudio knows.

    Attributes:
        number: Its number, good until devices come or go.
        name: Its name, and that of the system's interface it is seen through.
        inputs: Channels it records.
        outputs: Channels it plays.
        sample_rate_hz: The rate it likes best.
    """

    number: int
    name: str
    inputs: int
    outputs: int
    sample_rate_hz: int


def list_devices() -> list[Device]:
    """All devices; none is no error here.

    Raises:
        MissingExtraError: The `[live]` extra is not installed.
        SoundCardError: PortAudio is not there or does not start.
    """
    sounddevice = _sounddevice()
    with _telling(sounddevice, "the devices cannot be listed"):
        interfaces = sounddevice.query_hostapis()
        return [_device(entry, interfaces) for entry in sounddevice.query_devices()]


def find_device(wanted: str | None, kind: str) -> Device:
    """One device.

    Args:
        wanted: Its number, or a part of its name; None for the system's default.
        kind: `"input"` or `"output"`: what it must be.

    Raises:
        MissingExtraError: The `[live]` extra is not installed.
        SoundCardError: There is none, or more than one of that name.
    """
    sounddevice = _sounddevice()
    key = int(wanted) if wanted is not None and wanted.isdecimal() else wanted
    if not any(device.inputs if kind == "input" else device.outputs for device in list_devices()):
        raise SoundCardError(f"this machine has no sound card with an {kind}: PortAudio sees no such device")
    what = f"the default {kind} device" if wanted is None else f"{kind} device {wanted!r}"
    hint = "choose another with --list-devices"
    with _telling(sounddevice, f"{what} cannot be used", hint):
        try:
            entry = sounddevice.query_devices(key, kind)
        except ValueError as error:  # no such name, or several
            lines = str(error).splitlines()
            raise SoundCardError(f"{what} cannot be used: {' '.join(map(str.strip, lines))}; {hint}") from error
        return _device(entry, sounddevice.query_hostapis())


@contextmanager
def sound_card(
    source: Device, speaker: Device | None, feed: Feed, playout: Playout | None, sample_rate_hz: int, channels: int
) -> Iterator[Callable[[], None]]:
    """Open devices, and close them when the block ends; what is given begins to record, and to play.

    The sound card calls back every 10 ms in a thread of its own; there samples are only handed over, never computed.

    Args:
        source: What to record from.
        speaker: What to play to; None to play nothing.
        feed: Gets what is recorded; closed when the sound card stops by itself.
        playout: What is played, if something is; float32.
        sample_rate_hz: Rate of both.
        channels: Channels of both.

    Raises:
        SoundCardError: The devices do not do this rate or these channels, or are in use; starting may say so too.
    """
    sounddevice = _sounddevice()
    common = {
        "samplerate": sample_rate_hz,
        "blocksize": round(_BLOCK_S * sample_rate_hz),
        "channels": channels,
        "dtype": "float32",
        "latency": "low",
        "finished_callback": feed.close,
    }

    def record(heard: NDArray[np.float32], frames: int, time: object, flags: Any) -> None:
        feed.overflows += bool(flags.input_overflow)
        feed.put(np.ascontiguousarray(heard.T))  # PortAudio uses its array again

    def record_and_play(
        heard: NDArray[np.float32], played: NDArray[np.float32], frames: int, time: object, flags: Any
    ) -> None:
        record(heard, frames, time, flags)
        assert playout is not None
        played[:] = playout.take(np.zeros((channels, frames), np.float32)).T

    what = repr(source.name) if speaker is None else f"{source.name!r} with {speaker.name!r}"
    failed = f"{what} cannot be used at {sample_rate_hz} Hz with {channels} channel(s)"
    hint = "choose other devices, --sample-rate or --channels"
    with _telling(sounddevice, failed, hint):
        if speaker is None:
            stream = sounddevice.InputStream(device=source.number, callback=record, **common)
        else:
            both = (source.number, speaker.number)
            stream = sounddevice.Stream(device=both, callback=record_and_play, **common)

    def start() -> None:
        with _telling(sounddevice, failed, hint):
            stream.start()

    try:
        yield start
    finally:
        # Whatever the block ended with is what is to be told.
        stream.close(ignore_errors=True)


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("Live audio", "live", error) from error
    except OSError as error:  # it looks for the library when it is imported
        remedy = _INSTALL_PORTAUDIO.get(sys.platform, "reinstall the package sounddevice, which brings it")
        raise SoundCardError(f"PortAudio cannot be loaded ({error}), which live audio needs: {remedy}") from error
    return sounddevice


@contextmanager
def _telling(sounddevice: Any, what: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except sounddevice.PortAudioError as error:
        reason = str(error.args[0]) if error.args else str(error)
        raise SoundCardError(f"{what}: {reason}" + (f"; {hint}" if hint else "")) from error


def _device(entry: Any, interfaces: Any) -> Device:
    return Device(
        number=int(entry["index"]),
        name=f"{entry['name']}, {interfaces[entry['hostapi']]['name']}",
        inputs=int(entry["max_input_channels"]),
        outputs=int(entry["max_output_channels"]),
        sample_rate_hz=round(entry["default_samplerate"]),
    )
