"""Knowing that something waits, without looking again and again."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Announcing"]


class Announcing(deque):
    """Tells when something was added."""

    def __init__(self, added: threading.Semaphore) -> None:
        super().__init__()
        self.added = added

    def append(self, item: object) -> None:
        super().append(item)
        self.added.release()
