"""Connections, with the limits that uvicorn lacks: on their number, their time, and small pieces.

Python handles some 20,000 pieces a second: chunks of a body, or frames of a WebSocket. So bytes are parsed a little
at a time, and a client that exceeds its rate is read more slowly. Connections and requests cost as much
as several pieces, and count as such.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import DATA_OPCODES, Frame, Opcode

from frcrn_accel.serve.bounds import Bounds
from frcrn_accel.serve.clients import client_of

__all__ = ["HttpConnection", "WebSocketConnection"]

_VERSIONS = (b"1.0", b"1.1")
_MAX_HEAD_BYTES = 1 << 16
_SMALL_BYTES = 512  # a piece of a body below this counts
# Of a handshake, within the limits of the package websockets.
_MAX_HEADERS, _MAX_LINE_BYTES = 128, 8_000
# Parsed at a time; a chunk takes at least 6 bytes, and a frame as many.
_SLICE_BYTES = 1 << 12
_MAX_SLICE_BYTES = 1 << 14
_FRAMES_BYTES = 1 << 11

_INVALID_TEXT = 1007  # close code of RFC 6455
_Decoder = codecs.getincrementaldecoder("utf-8")

_log = logging.getLogger("frcrn_accel.serve")


class _Requests(h11.Connection):
    """An HTTP parser that refuses requests whose end is ambiguous, which h11 accepts.

    A proxy in front may find another end, and take what follows for the request of another client.

    Attributes:
        is_long: Whether the body has a length, so that any part of it is one piece.
        small: Pieces found that count.
    """

    is_long = False
    small = 0

    def next_event(self) -> Any:
        """Return the next event, see `h11.Connection`."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            if event.http_version not in _VERSIONS:
                raise h11.RemoteProtocolError("not a version of HTTP in this form")
            headers = dict(event.headers)
            is_chunked, self.is_long = b"transfer-encoding" in headers, b"content-length" in headers
            if is_chunked and (self.is_long or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("the length of the body is ambiguous")
        elif isinstance(event, h11.Data):
            self.small += len(event.data) < _SMALL_BYTES
        elif isinstance(event, h11.EndOfMessage):
            self.is_long = False
        return event


class HttpConnection(H11Protocol):
    """A connection with a time limit for the head of a request and for a handshake.

    The limit also holds for the rest of a body that was answered before it was complete. When the connection is
    closed, data that the client does not read in time is dropped.

    Attributes:
        bounds: Limits that all connections share.
    """

    bounds: Bounds
    _timer: asyncio.TimerHandle | None = None
    _pause: asyncio.TimerHandle | None = None
    _drop: asyncio.TimerHandle | None = None
    _release: Callable[[], None] | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _Requests(h11.SERVER, _MAX_HEAD_BYTES)
        self._unread = bytearray()
        self._slice = _SLICE_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Admit the connection, see `asyncio.Protocol`."""
        super().connection_made(transport)
        address = self.client[0] if self.client else ""
        self._release = self.bounds.admit(address)
        if self._release is None:
            transport.abort()
            return
        self._watch()
        self._drop_unread()
        self._wait(self.bounds.open_delay(address))

    def data_received(self, data: bytes) -> None:
        """Parse as much as the client may send now, see `asyncio.Protocol`."""
        self._unread += data
        if self._pause is not None:
            self.transport.pause_reading()
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the connection took, see `asyncio.Protocol`."""
        self._unwatch()
        for timer in (self._pause, self._drop):
            if timer is not None:
                timer.cancel()
        if self._release is not None:
            self._release()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection to a `WebSocketConnection`, see `H11Protocol`."""
        if not _is_handshake(event):
            self.send_400_response("Invalid WebSocket handshake.")
            return
        super().handle_websocket_upgrade(event)
        self._unwatch()
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, WebSocketConnection)
        protocol.bounds, protocol.release, self._release = self.bounds, self._release, None
        if not protocol.handshake_initiated:
            self.send_400_response("Invalid WebSocket handshake.")
        else:
            self.loop.call_later(self.bounds.slow_s, protocol.end_handshake)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed; if that was the body of one in progress, end that one."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
        answer = (
            h11.Response(status_code=400, headers=headers, reason="Bad Request"),
            h11.Data(data=msg.encode("ascii")),
            h11.EndOfMessage(),
        )
        parts: list[bytes] = []
        with suppress(h11.LocalProtocolError):  # an answer to HEAD has no body
            for event in answer:
                parts.append(self.conn.send(event) or b"")
        self.transport.write(b"".join(parts))  # at once, since sending costs more than all the rest
        self.transport.close()

    def _read(self) -> None:
        """Parse what was received, as fast as the client may send pieces."""
        conn: Any = self.conn
        while self._unread and self._pause is None and not self.transport.is_closing():
            size = len(self._unread) if conn.is_long else self._slice
            data = bytes(self._unread[:size])
            del self._unread[:size]
            conn.small = int(len(data) < _SMALL_BYTES)
            super().data_received(data)
            if self.transport.get_protocol() is not self:
                return
            self._watch()
            # Larger slices cost less, as long as there is little in them.
            self._slice = min(2 * self._slice, _MAX_SLICE_BYTES) if conn.small <= 8 else _SLICE_BYTES
            scope: Any = self.scope or {"client": self.client}
            if conn.small:
                self._wait(self.bounds.rates.spend(client_of(scope), conn.small))

    def _wait(self, wait_s: float) -> None:
        """Read nothing for some time."""
        if wait_s:
            self.transport.pause_reading()
            self._pause = self.loop.call_later(wait_s, self._continue)

    def _continue(self) -> None:
        self._pause = None
        self._read()
        if self._pause is None and not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def _drop_unread(self, earlier: int | None = None) -> None:
        """Drop the unsent data of a closed connection if the client reads it too slowly.

        Args:
            earlier: Unsent bytes `slow_s` ago, if the connection was closed by then.
        """
        left = self.transport.get_write_buffer_size()
        is_closing = self.transport.is_closing()
        if is_closing and left and earlier is not None and earlier - left < self.bounds.slow_bytes:
            self.transport.abort()
        elif left or not is_closing:
            self._drop = self.loop.call_later(self.bounds.slow_s, self._drop_unread, left if is_closing else None)

    def _watch(self) -> None:
        is_upgraded = self.transport.get_protocol() is not self
        is_waiting = self.cycle is None or self.cycle.response_complete
        if is_upgraded or not is_waiting:
            self._unwatch()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.bounds.slow_s, self.transport.close)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A WebSocket that is read a message at a time, and that may be refused with a body.

    Attributes:
        bounds: Limits that all connections share.
        release: Called at its end.
    """

    bounds: Bounds | None = None
    release: Callable[[], None] | None = None
    _pause: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = bytearray()
        self._decoder: codecs.IncrementalDecoder | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what the connection took, see `asyncio.Protocol`."""
        if self._pause is not None:
            self._pause.cancel()
        if self.release is not None:
            self.release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse as much as the client may send now, see `asyncio.Protocol`."""
        self._unread += data
        self._read()

    def handle_ping(self) -> None:
        """Answer a ping, unless the client does not read."""
        output = self.conn.data_to_send()
        if self.writable.is_set():
            self.transport.write(b"".join(output))

    async def receive(self) -> Any:
        """Return the next message, see ASGI."""
        message = await super().receive()
        self._read()
        return message

    async def send(self, message: Any) -> None:
        """Send a message, see ASGI."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # uvicorn 0.54 logs an error after a complete refusal
        self._read()

    def end_handshake(self) -> None:
        """Close the connection if the handshake has not been answered."""
        if not self.handshake_complete:
            self.transport.close()

    def _read(self) -> None:
        """Parse what was received: up to the next message, and as fast as the client may send frames."""
        while self._unread and self._is_free and not self.transport.is_closing():
            size = _FRAMES_BYTES if self.handshake_initiated else len(self._unread)
            data = bytes(self._unread[:size])
            del self._unread[:size]
            self.conn.receive_data(data)
            frames = len(self.conn.events)
            if self.conn.parser_exc is None and not self._is_text_valid():
                self.conn.send_close(_INVALID_TEXT)  # uvicorn would do that with a traceback in the log
                self.handle_parser_exception()
                return
            if self.conn.parser_exc is not None:
                self.handle_parser_exception()
                return
            self.handle_events()
            wait_s = self.bounds.rates.spend(client_of(self.scope), frames) if self.bounds and frames else 0.0
            if wait_s:
                self._pause = self.loop.call_later(wait_s, self._continue)
        if self.transport.is_closing():
            return
        if self._unread or self._pause is not None:
            self.transport.pause_reading()
        elif not self.read_paused:
            self.transport.resume_reading()

    def _is_text_valid(self) -> bool:
        """Return whether the text in the frames that were received is UTF-8 so far."""
        for frame in self.conn.events:
            if not isinstance(frame, Frame) or frame.opcode not in DATA_OPCODES:
                continue
            if frame.opcode is not Opcode.CONT:
                self._decoder = _Decoder() if frame.opcode is Opcode.TEXT else None
            try:
                if self._decoder is not None:
                    self._decoder.decode(bytes(frame.data), frame.fin)
            except UnicodeDecodeError:
                return False
        return True

    @property
    def _is_free(self) -> bool:
        return self._pause is None and (self.queue.empty() or self.close_sent)

    def _continue(self) -> None:
        self._pause = None
        self._read()


def _is_handshake(event: h11.Request) -> bool:
    """Return whether the WebSocket parser takes a request, which it would otherwise ignore.

    It takes a GET without a body, with a head within its limits. This check is cheaper than a parser.
    """
    headers = list(event.headers)
    lines = [len(event.target), *(len(name) + len(value) for name, value in headers)]
    is_bodiless = not {b"content-length", b"transfer-encoding"} & {name for name, _ in headers}
    is_small = len(headers) <= _MAX_HEADERS and max(lines) <= _MAX_LINE_BYTES
    return event.method == b"GET" and is_bodiless and is_small
