"""Limits for each client: how much it may hold at a time, and how much it may use per second."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

__all__ = ["Rates", "Shares", "client_of", "network_of"]

_NETWORK_BITS = 64  # of IPv6: whoever has one address has such a network of them
_MOST_KNOWN = 10_000
_MOST_CHARACTERS = 64


def client_of(scope: Mapping[str, Any]) -> str:
    """Return the client that a request counts for: its address, or the network of an IPv6 address."""
    return network_of((scope.get("client") or ("-",))[0])


@lru_cache(1024)
def network_of(address: str) -> str:
    """Return an IPv4 address as it is, and the network of an IPv6 address."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:  # a name, or whatever a proxy passes on
        return address[:_MOST_CHARACTERS]
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> _NETWORK_BITS << _NETWORK_BITS)}/{_NETWORK_BITS}"


class Shares:
    """Count what each client holds at the moment, up to a limit.

    Args:
        most: Most that one client may hold.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    def take(self, client: str, amount: int = 1) -> bool:
        """Take something, and return whether there was still enough."""
        if self._held[client] + amount > self._most:
            if not self._held[client]:
                del self._held[client]
            return False
        self._held[client] += amount
        return True

    def give_back(self, client: str, amount: int = 1) -> None:
        """Give back what was taken."""
        self._held[client] -= amount
        if self._held[client] <= 0:
            del self._held[client]

    @contextmanager
    def holding(self, client: str) -> Iterator[bool]:
        """Take one for the length of a block; yield whether there was one left."""
        is_held = self.take(client)
        try:
            yield is_held
        finally:
            if is_held:
                self.give_back(client)


class Rates:
    """Limit the rate of each client (a token bucket).

    Args:
        per_s: What a client gets each second.
        ahead_s: How many seconds' worth of that it can save up.
        clock: Returns the time in seconds.
    """

    def __init__(self, per_s: float, ahead_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._most = per_s * ahead_s
        self._clock = clock
        self._levels: dict[str, tuple[float, float]] = {}  # the level, and when it was computed

    @property
    def known(self) -> int:
        """Number of clients that are remembered."""
        return len(self._levels)

    def spend(self, client: str, amount: float = 1.0, *, most_owed: float = math.inf) -> float:
        """Use something up; return how long to wait, in seconds, until it is paid for.

        Args:
            client: Who uses it.
            amount: How much.
            most_owed: Most that a client can owe; it does not use up more.
        """
        now = self._clock()
        level, when = self._levels.get(client, (self._most, now))
        level = min(self._most, level + self._per_s * (now - when))
        level = max(level - amount, min(level, -most_owed))
        if client not in self._levels and len(self._levels) >= _MOST_KNOWN:
            self._forget(now)
        self._levels[client] = level, now
        return max(0.0, -level / self._per_s)

    def _forget(self, now: float) -> None:
        """Forget clients that have all they can save; if there are none, those seen first."""
        full = [
            name for name, (level, when) in self._levels.items() if level + self._per_s * (now - when) >= self._most
        ]
        for client in full or list(self._levels)[: _MOST_KNOWN // 2]:
            del self._levels[client]
