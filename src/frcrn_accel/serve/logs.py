"""The log of the server process: one line for each message, without control characters, at a limited rate."""

from __future__ import annotations

import logging
import threading

from frcrn_accel.printable import SafeFormatter
from frcrn_accel.serve.clients import Rates

__all__ = ["Sparing", "configure_log"]

_LINES_PER_S = 20.0
_AHEAD_S = 30.0
_CLIENT = "client"


class Sparing(logging.Filter):
    """A filter that limits the lines of each client, and the other lines of each logger, and logs how many it drops.

    So lines of other packages, such as those of uvicorn about invalid requests, do not crowd out those of the server.

    Args:
        per_s: Lines each second.
        ahead_s: How many seconds' worth of that can come at once.
    """

    def __init__(self, per_s: float = _LINES_PER_S, ahead_s: float = _AHEAD_S) -> None:
        super().__init__()
        self._rates = Rates(per_s, ahead_s)
        self._left_out = 0
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record, see `logging.Filter`."""
        with self._lock:
            if self._rates.spend(getattr(record, _CLIENT, record.name), 1.0, most_owed=1.0) > 0:
                self._left_out += 1
                return False
            if self._left_out:
                record.msg = f"{record.msg} (before it, {self._left_out} lines were left out)"
                self._left_out = 0
        return True


def configure_log() -> None:
    """Log to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(SafeFormatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(Sparing())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
