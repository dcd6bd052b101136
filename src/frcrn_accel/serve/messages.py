"""The messages of `WS /v1/stream`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.audio import check_attenuation_limit
from frcrn_accel.errors import AudioError
from frcrn_accel.high_band import HighBandMode, check_high_band
from frcrn_accel.pcm import from_pcm, to_pcm

__all__ = [
    "CLIENT_ERROR",
    "MAX_MESSAGE_BYTES",
    "RESTART",
    "SERVER_ERROR",
    "TRY_AGAIN",
    "Control",
    "Start",
    "StreamProblem",
    "bad_message",
    "read_audio",
    "read_control",
    "read_start",
    "write_audio",
]

MAX_MESSAGE_BYTES = 1 << 18
CLIENT_ERROR, SERVER_ERROR, RESTART, TRY_AGAIN = 1008, 1011, 1012, 1013  # close codes of RFC 6455 and its registry
_SAMPLE = np.dtype("<i2")
_MAX_NUMBER = 1e9
_START: dict[str, dict[str, type]] = {
    "start": {
        "sample_rate": int,
        "channels": int,
        "attenuation_limit_db": float,
        "lookahead_s": float,
        "high_band": str,
    }
}
_CONTROLS: dict[str, dict[str, type]] = {"set": {"attenuation_limit_db": float}, "reset": {}, "flush": {}}


@dataclass(frozen=True)
class Start:
    """The first message of a client.

    Attributes:
        sample_rate: Rate of the audio, Hz.
        channels: Channels of the audio.
        attenuation_limit_db: None for the server's default.
        lookahead_s: None for the model's default.
        high_band: None for the server's default.
    """

    sample_rate: int
    channels: int = 1
    attenuation_limit_db: float | None = None
    lookahead_s: float | None = None
    high_band: HighBandMode | None = None


@dataclass(frozen=True)
class Control:
    """A later text message of a client.

    Attributes:
        kind: "set", "reset" or "flush".
        attenuation_limit_db: For "set"; None for the server's default.
    """

    kind: str
    attenuation_limit_db: float | None = None


class StreamProblem(Exception):
    """A reason for the server to end a stream.

    Args:
        code: Close code of the WebSocket.
        title: The kind of problem, in a few words.
        detail: What happened and what to do.

    Attributes:
        code, title, detail: As given.
    """

    def __init__(self, code: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.title = title
        self.detail = detail


def bad_message(detail: str) -> StreamProblem:
    """Return the problem of a message that is not valid."""
    return StreamProblem(CLIENT_ERROR, "Bad message", detail)


def read_start(message: str | bytes) -> Start:
    """Read the first message.

    Raises:
        StreamProblem: It is not a valid "start".
    """
    if not isinstance(message, str):
        raise StreamProblem(CLIENT_ERROR, "No start", 'the first message must be {"type": "start", ...}')
    kind, values = _read(message, _START)
    if "sample_rate" not in values:
        raise bad_message(f"{kind!r} must have sample_rate")
    return Start(**values)


def read_control(text: str) -> Control:
    """Read a text message after the first.

    Raises:
        StreamProblem: It is not a valid "set", "reset" or "flush".
    """
    kind, values = _read(text, _CONTROLS)
    return Control(kind, **values)


def read_audio(message: bytes, channels: int) -> NDArray[np.int16]:
    """Read a binary message as `int16 (channels, samples)`.

    Raises:
        StreamProblem: It is not a whole number of samples.
    """
    try:
        return from_pcm(message, channels, _SAMPLE)
    except AudioError as error:
        raise bad_message(str(error)) from error


def write_audio(samples: NDArray[Any]) -> bytes:
    """Write `(channels, samples)`, integers within 16 bits, as a binary message."""
    return to_pcm(samples, _SAMPLE)


def _read(text: str, messages: Mapping[str, Mapping[str, type]]) -> tuple[str, dict[str, Any]]:
    """Return the type of a message and its fields, without those that are null.

    Args:
        text: The message.
        messages: The valid messages by type, and the types of their fields: whole numbers, numbers or text.

    Raises:
        StreamProblem: It is not one of them.
    """
    try:
        message = json.loads(text, object_pairs_hook=_unambiguous)
    except _FieldTwiceError as error:
        raise bad_message(f"a message has the field {str(error)[:40]!a} twice") from None
    except (ValueError, RecursionError):
        raise bad_message("a text message must be JSON") from None
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str) or kind not in messages:
        raise bad_message(f'a message must be an object with a "type" out of {", ".join(messages)}')
    fields = messages[kind]
    values = {name: value for name, value in message.items() if name != "type" and value is not None}
    for name, value in values.items():
        if name not in fields:
            raise bad_message(f"{kind!r} has no field {name[:40]!a}")
        if fields[name] is str:
            if not isinstance(value, str):
                raise bad_message(f"{name} must be text")
            continue
        # The comparison also refuses NaN, which Python's JSON reader accepts.
        is_number = isinstance(value, (int, fields[name])) and not isinstance(value, bool)
        if not (is_number and -_MAX_NUMBER <= value <= _MAX_NUMBER):
            raise bad_message(f"{name} must be {'a whole number' if fields[name] is int else 'a number'}")
    try:
        check_attenuation_limit(values.get("attenuation_limit_db"))
        if "high_band" in values:
            check_high_band(values["high_band"])
    except ValueError as error:
        raise bad_message(str(error)) from None
    return kind, values


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; refuse one with a name twice, which other readers may take differently.

    Raises:
        _FieldTwiceError: It has a name twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _FieldTwiceError(name)
        found[name] = value
    return found


class _FieldTwiceError(ValueError):
    """A JSON object has a name twice."""
