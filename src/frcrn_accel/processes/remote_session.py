"""A session that runs in another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frcrn_accel.backends import Session

__all__ = ["RemoteSession"]


class RemoteSession(Session):
    """A session that sends its windows to another process.

    Args:
        ask: Sends a message and audio; returns the audio of the answer.
    """

    device = "another process"

    def __init__(self, ask: Callable[[dict[str, Any], NDArray[np.float32]], NDArray[np.float32]]) -> None:
        self._ask = ask

    def run(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Denoise a batch, see `Session.run`."""
        return self._ask({"do": "run", "shape": audio.shape}, audio)
