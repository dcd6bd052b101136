"""What the server takes on, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits of the server. All are on by default.

    Attributes:
        max_body_bytes: Longest body of a request.
        max_duration_s: Longest audio.
        max_decoded_bytes: Largest audio, decoded to 32-bit samples of all channels: a file of a few bytes can hold
            hours of silence.
        max_channels: Most channels, of files and streams.
        concurrency: Requests that are computed at the same time.
        queue: Requests that wait for that, or are on their way in or out; beyond it the answer is 429.
        timeout_s: A request that waits and computes for longer is given up.
        min_bytes_per_second: A client that sends or takes less, over `slow_s`, is given up.
        slow_s: See `min_bytes_per_second`; and the longest time for the head of a request.
        max_streams: Live streams at the same time.
        stream_idle_s: A stream that sends nothing, or takes nothing, for longer is closed.
        drain_s: Longest time for what is under way when the server is told to end.

    Raises:
        ValueError: One is not positive (`queue` may be 0), or not finite.
    """

    max_body_bytes: int = 128 << 20
    max_duration_s: float = 1800.0
    max_decoded_bytes: int = 1 << 30
    max_channels: int = 8
    concurrency: int = 4
    queue: int = 16
    timeout_s: float = 600.0
    min_bytes_per_second: int = 1024
    slow_s: float = 10.0
    max_streams: int = 16
    stream_idle_s: float = 60.0
    drain_s: float = 60.0

    def __post_init__(self) -> None:
        """Check them."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and (value > 0 or (value == 0 and field.name == "queue"))):
                raise ValueError(f"{field.name} must be more than 0, got {value}")
