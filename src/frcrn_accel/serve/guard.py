"""Who may come in: tokens, and web pages of other origins."""

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
    """Middleware: `/v1/` is for those who have a token, if there are tokens, and for no page of another origin.

    A page in a browser may send to any address that the browser reaches, this machine's loopback too. So a request
    that says it comes from another origin is refused, whatever it wants.

    Args:
        app: What is guarded.
        tokens: If there are none, nobody is asked for one.
        allowed_origins: Origins whose pages may use the server, e.g. "https://example.org"; "*" for all.
    """

    def __init__(self, app: ASGIApp, tokens: TokenSet, allowed_origins: frozenset[str]) -> None:
        self._app = app
        self._tokens = tokens
        self._allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket") or not scope["path"].startswith(_PROTECTED):
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is None:
            await self._app(scope, receive, send)
        else:
            # Starlette turns it into the answer that a WebSocket can get before it is one.
            await problem.response()(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, headers.get("host", "")):
            return Problem(403, "pages of this origin may not use this server: allow it with --allow-origin")
        if not self._tokens.admits(headers.get("authorization"), subprotocols_of(scope)):
            return Problem(401, "give a token that this server knows", {"WWW-Authenticate": "Bearer"})
        return None

    def _is_allowed(self, origin: str, host: str) -> bool:
        is_own = host != "" and urlsplit(origin).netloc == host
        return is_own or not self._allowed_origins.isdisjoint((origin, "*"))


class SafeHeaders:
    """Middleware: headers that let a browser load nothing from elsewhere, with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def safe_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            await send(message)

        await self._app(scope, receive, safe_send)


def subprotocols_of(scope: Scope) -> list[str]:
    """What a WebSocket offers; some servers hand the header on as it is."""
    return [name.strip() for text in scope.get("subprotocols", []) for name in text.split(",")]
