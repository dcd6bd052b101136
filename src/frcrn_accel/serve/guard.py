"""Access control: tokens, origins and host names; and security headers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frcrn_accel.errors import ServeError
from frcrn_accel.serve.clients import Rates, client_of
from frcrn_accel.serve.limits import Limits
from frcrn_accel.serve.problems import Problem
from frcrn_accel.serve.tokens import TokenSet

__all__ = ["Guard", "Hosts", "SafeHeaders", "allowed_host_names", "guess_rates", "subprotocols_of"]

_ANY = "*"
_GUESSES_PER_S, _GUESS_S = 0.1, 1.0
_LOOPBACK = "localhost"
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]\\]+)(:[0-9]{0,5})?", re.ASCII)
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Middleware that requires a token, if there are tokens, and refuses other origins.

    A web page can send requests to any address that its browser reaches, including the loopback of this machine. So
    every request with a foreign `Origin` is refused.

    After ten requests of a client without a valid token (`Limits.client_guesses`), the answer to each further such
    request takes a second. Requests with a valid token are not affected.

    Args:
        app: The application to protect.
        tokens: The valid tokens; if there are none, no token is required.
        allowed_origins: Origins whose pages may use the server, e.g. "https://example.org"; "*" for all.
        guesses: Rate limits of clients for requests without a valid token, from `guess_rates`.
    """

    def __init__(
        self, app: ASGIApp, tokens: TokenSet, allowed_origins: frozenset[str], guesses: Rates | None = None
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._allowed_origins = allowed_origins
        self._guesses = guesses or guess_rates()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""
        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            if problem.status == 401 and self._guesses.spend(client_of(scope), most_owed=1.0):
                await asyncio.sleep(_GUESS_S)
                problem = Problem(429, "too many wrong tokens from this address", {"Retry-After": "60"})
            # Before the handshake of a WebSocket, Starlette sends this as an HTTP response.
            await problem.response()(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, headers.get("host", "")):
            return Problem(403, "web pages of this origin may not use the server: allow it with --allow-origin")
        if not self._tokens.admits(headers.get("authorization"), subprotocols_of(scope)):
            return Problem(401, "missing or unknown token", {"WWW-Authenticate": "Bearer"})
        return None

    def _is_allowed(self, origin: str, host: str) -> bool:
        is_own = host != "" and origin.partition("://")[2] == host
        return is_own or not self._allowed_origins.isdisjoint((origin, _ANY))


def guess_rates(most: int = Limits.client_guesses) -> Rates:
    """Return the rate limits for requests without a valid token."""
    return Rates(_GUESSES_PER_S, most / _GUESSES_PER_S)


class Hosts:
    """Middleware that refuses requests that are addressed to unknown host names.

    A web page can have its own name resolve to the address of this server (DNS rebinding). Its requests then
    pass the check of origins, but still name the page's host. IP addresses and names of loopback cannot be used for
    that.

    Args:
        app: The application to protect.
        allowed: Other names that are allowed, from `allowed_host_names`.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        for host in Headers(scope=scope).getlist("host"):  # HTTP/1.0 needs none; browsers always send one
            if not self._is_allowed(host):
                text = f"requests to the host {host[:80]!a} are not allowed: allow its name with --allow-host"
                await Problem(403, text).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        if _ANY in self._allowed:
            return True
        name = _host_name(host)
        if name is None:
            return False
        return name in self._allowed or name.endswith(f".{_LOOPBACK}") or name == _LOOPBACK or _is_address(name)


class SafeHeaders:
    """Middleware that adds security headers: the page may load nothing from other servers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""

        async def safe_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        await self._app(scope, receive, safe_send)


def subprotocols_of(scope: Scope) -> list[str]:
    """Return the subprotocols that a client offers; some servers pass the header on unparsed."""
    return [name.strip() for text in scope.get("subprotocols", []) for name in text.split(",")]


def allowed_host_names(names: Iterable[str]) -> frozenset[str]:
    """Return host names in the form that `Hosts` compares.

    Raises:
        ServeError: One is not a host name.
    """
    found = set()
    for text in names:
        match = _HOST.fullmatch(text)
        if not _is_address(text) and (match is None or match["name"] != text):
            raise ServeError(f"invalid host name {text!r}: give a name such as denoiser.example.org, or * for all")
        found.add(_normalized(text))
    return frozenset(found)


def _host_name(host: str) -> str | None:
    """Return the name in a `Host` header, without the port; None if it is not valid."""
    match = _HOST.fullmatch(host)
    return None if match is None else _normalized(match["name"])


def _normalized(name: str) -> str:
    return name.lower().removesuffix(".").removeprefix("[").removesuffix("]")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
