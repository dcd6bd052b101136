"""Microphone and speaker through PortAudio, which the package sounddevice wraps."""

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
    """A device that PortAudio lists.

    Attributes:
        number: Its number, valid until devices are plugged in or removed.
        name: Its name, and that of the host API that it is listed under.
        inputs: Number of input channels.
        outputs: Number of output channels.
        sample_rate_hz: Its preferred rate.
    """

    number: int
    name: str
    inputs: int
    outputs: int
    sample_rate_hz: int


def list_devices() -> list[Device]:
    """Return all devices; an empty list if the machine has none.

    Raises:
        MissingExtraError: The `[live]` extra is not installed.
        SoundCardError: PortAudio is missing or does not start.
    """
    sounddevice = _sounddevice()
    with _sound_card_errors(sounddevice, "the devices cannot be listed"):
        interfaces = sounddevice.query_hostapis()
        return [_device(entry, interfaces) for entry in sounddevice.query_devices()]


def find_device(wanted: str | None, kind: str) -> Device:
    """Find a device.

    Args:
        wanted: Its number, or a part of its name; None for the system's default.
        kind: `"input"` or `"output"`.

    Raises:
        MissingExtraError: The `[live]` extra is not installed.
        SoundCardError: No device matches, or several do.
    """
    sounddevice = _sounddevice()
    key = int(wanted) if wanted is not None and wanted.isdecimal() else wanted
    if not any(device.inputs if kind == "input" else device.outputs for device in list_devices()):
        raise SoundCardError(f"this machine has no sound card with an {kind}: PortAudio finds no such device")
    what = f"the default {kind} device" if wanted is None else f"{kind} device {wanted!r}"
    hint = "choose another with --list-devices"
    with _sound_card_errors(sounddevice, f"{what} cannot be used", hint):
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
    """Open devices for the duration of the block; the function that it yields starts them.

    The sound card calls back every 10 ms in its own thread, which only hands samples over and computes nothing.

    Args:
        source: Device to record from.
        speaker: Device to play to; None to play nothing.
        feed: Receives the recorded blocks; closed when the sound card stops.
        playout: Provides the samples to play, float32; None to play nothing.
        sample_rate_hz: Rate of both.
        channels: Channels of both.

    Raises:
        SoundCardError: The devices do not support this rate or channel count, or are busy. `start()` can raise it
            too.
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

    def record(recorded: NDArray[np.float32], frames: int, time: object, flags: Any) -> None:
        feed.overflows += bool(flags.input_overflow)
        feed.put(recorded.T)

    def record_and_play(
        recorded: NDArray[np.float32], played: NDArray[np.float32], frames: int, time: object, flags: Any
    ) -> None:
        record(recorded, frames, time, flags)
        assert playout is not None
        played[:] = playout.take(np.zeros((channels, frames), np.float32)).T

    what = repr(source.name) if speaker is None else f"{source.name!r} with {speaker.name!r}"
    failed = f"{what} cannot be used at {sample_rate_hz} Hz with {channels} channel(s)"
    hint = "choose other devices, --sample-rate or --channels"
    with _sound_card_errors(sounddevice, failed, hint):
        if speaker is None:
            stream = sounddevice.InputStream(device=source.number, callback=record, **common)
        else:
            both = (source.number, speaker.number)
            stream = sounddevice.Stream(device=both, callback=record_and_play, **common)

    def start() -> None:
        with _sound_card_errors(sounddevice, failed, hint):
            stream.start()

    try:
        yield start
    finally:
        # An error of closing must not hide the one that ended the block.
        stream.close(ignore_errors=True)


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("Live audio", "live", error) from error
    except OSError as error:  # sounddevice loads PortAudio when it is imported
        remedy = _INSTALL_PORTAUDIO.get(sys.platform, "reinstall the package sounddevice, which contains it")
        raise SoundCardError(f"PortAudio cannot be loaded ({error}), which live audio needs: {remedy}") from error
    return sounddevice


@contextmanager
def _sound_card_errors(sounddevice: Any, what: str, hint: str = "") -> Iterator[None]:
    """Turn errors of PortAudio into `SoundCardError`."""
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
