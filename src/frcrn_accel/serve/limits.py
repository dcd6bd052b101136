"""The limits of the server."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits of the server. All are on by default.

    A client is an IPv4 address or the first 64 bits of an IPv6 address; behind a trusted proxy, the one it names.

    Attributes:
        max_body_bytes: Largest request body.
        max_duration_s: Longest audio.
        max_decoded_bytes: Largest audio, decoded to 32-bit samples of all channels: a small file can hold hours of
            silence.
        max_channels: Most channels of a file or a stream.
        concurrency: Requests computed at the same time.
        queue: More requests that may be in progress: waiting, uploading or downloading. Beyond it the answer is 429.
        client_requests: Most requests in progress of one client.
        client_bytes: Most bytes of the bodies of these requests, together.
        timeout_s: Longest time for a request to wait and compute.
        min_bytes_per_second: Slowest transfer in either direction, averaged over `slow_s`.
        slow_s: See `min_bytes_per_second`; also the longest time for the head of a request.
        stall_s: The server is not ready while the engine has had calls to answer for this time and answered none; a
            live stream that waits for longer is ended.
        upload_s: Longest time for a body to arrive.
        max_streams: Most live streams at the same time.
        client_streams: Most live streams of one client.
        stream_idle_s: Longest time for the client of a stream to send no audio, or not to read.
        max_connections: Most connections at the same time. The server lowers it if the process may not open as many.
        client_connections: Most connections of one client.
        client_frames_per_s: Most WebSocket frames, and small pieces of requests, of one client; a connection counts
            as 3 of these, a request as 2. Beyond it, the client is slowed down.
        client_guesses: Requests without a valid token that a client may send before the answer to each further one
            takes a second; one more is allowed every 10 s.
        drain_s: Longest time to finish requests and streams when the server shuts down.

    Raises:
        ValueError: A value is not finite or not positive; `queue` may be 0.
    """

    max_body_bytes: int = 128 << 20
    max_duration_s: float = 1800.0
    max_decoded_bytes: int = 1 << 30
    max_channels: int = 8
    concurrency: int = 4
    queue: int = 16
    client_requests: int = 16
    client_bytes: int = 1 << 30
    timeout_s: float = 600.0
    min_bytes_per_second: int = 1024
    slow_s: float = 10.0
    upload_s: float = 600.0
    stall_s: float = 120.0
    max_streams: int = 16
    client_streams: int = 12
    stream_idle_s: float = 60.0
    max_connections: int = 512
    client_connections: int = 128
    client_frames_per_s: float = 1000.0
    client_guesses: int = 10
    drain_s: float = 60.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and (value > 0 or (value == 0 and field.name == "queue"))):
                raise ValueError(f"{field.name} must be more than 0, got {value}")
