"""Access control: tokens and origins; and security headers."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frcrn_accel.serve.problems import Problem
from frcrn_accel.serve.tokens import TokenSet

__all__ = ["Guard", "SafeHeaders", "subprotocols_of"]

_PROTECTED = "/v1/"
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; worker-src 'self'; manifest-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Middleware that protects `/v1/`: it requires a token, if there are tokens, and refuses other origins.

    A web page can send requests to any address that its browser reaches, including the loopback of this machine. So
    every request with a foreign `Origin` is refused.

    Args:
        app: The application to protect.
        tokens: The valid tokens; if there are none, no token is required.
        allowed_origins: Origins whose pages may use the server, e.g. "https://example.org"; "*" for all.
    """

    def __init__(self, app: ASGIApp, tokens: TokenSet, allowed_origins: frozenset[str]) -> None:
        self._app = app
        self._tokens = tokens
        self._allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, see ASGI."""
        if scope["type"] not in ("http", "websocket") or not scope["path"].startswith(_PROTECTED):
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
        else:
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
        is_own = host != "" and urlsplit(origin).netloc == host
        return is_own or not self._allowed_origins.isdisjoint((origin, "*"))


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
