"""Limits that all connections share: on their number, and on what a client sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.types import ASGIApp, Receive, Scope, Send

from frcrn_accel.errors import ServeError
from frcrn_accel.serve.clients import Rates, Shares, client_of, network_of
from frcrn_accel.serve.limits import Limits

__all__ = ["Bounds", "PacedRequests"]

_AHEAD_S = 2.0  # a burst: seconds' worth of pieces that a client can save up
_CONNECTION_PIECES, _REQUEST_PIECES = 3, 2


class Bounds:
    """Limits that all connections share.

    Args:
        limits: Limits of the server.
        most: Most connections.
        proxies: Addresses or networks of proxies, which are not bound by `Limits.client_connections`.
        refused: Called for each connection that is refused.

    Attributes:
        slow_s: Time limit for a head and for a handshake.
        slow_bytes: Bytes that a client must take in that time.
        rates: Rate limits of clients, in pieces.
        count: Number of connections.

    Raises:
        ServeError: A proxy is neither an address nor a network.
    """

    def __init__(
        self, limits: Limits, most: int, proxies: Iterable[str] = (), refused: Callable[[], None] = lambda: None
    ) -> None:
        self.slow_s = limits.slow_s
        self.slow_bytes = limits.slow_s * limits.min_bytes_per_second
        self.rates = Rates(limits.client_frames_per_s, _AHEAD_S)
        self.count = 0
        self._most_owed = limits.client_frames_per_s * limits.slow_s / 2
        self._most = most
        self._shares = Shares(limits.client_connections)
        self._proxies = [_network(proxy) for proxy in proxies]
        self._refused = refused

    def admit(self, address: str) -> Callable[[], None] | None:
        """Admit a connection; return a function to call at its end, or None if it is refused."""
        client = network_of(address)
        is_limited = not self._is_proxy(address)
        if self.count >= self._most or (is_limited and not self._shares.take(client)):
            self._refused()
            return None
        self.count += 1

        def release() -> None:
            self.count -= 1
            if is_limited:
                self._shares.give_back(client)

        return release

    def open_delay(self, address: str) -> float:
        """Count a new connection; return how long not to read from it, in seconds: half of `slow_s` at most."""
        return 0.0 if self._is_proxy(address) else self._spend(network_of(address), _CONNECTION_PIECES)

    def request_delay(self, client: str) -> float:
        """Count a request; return how long not to answer it, likewise."""
        return self._spend(client, _REQUEST_PIECES)

    def _spend(self, client: str, pieces: float) -> float:
        return self.rates.spend(client, pieces, most_owed=self._most_owed)

    def _is_proxy(self, address: str) -> bool:
        if not self._proxies:
            return False
        with suppress(ValueError):
            found = ip_address(address)
            return any(found in network for network in self._proxies)
        return False


class PacedRequests:
    """Middleware that delays the requests of a client that sends too many.

    Args:
        app: The application.
        bounds: Limits that all connections share.
    """

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""
        if scope["type"] in ("http", "websocket"):
            wait_s = self._bounds.request_delay(client_of(scope))
            if wait_s:
                await asyncio.sleep(wait_s)
        await self._app(scope, receive, send)


def _network(proxy: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(proxy)
    except ValueError as error:
        raise ServeError(f"invalid proxy {proxy!r}: give an address or a network, e.g. 10.0.0.0/8") from error
