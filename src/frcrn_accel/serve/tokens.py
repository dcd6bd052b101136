"""Who may use the server."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from frcrn_accel.errors import ServeError

__all__ = ["SUBPROTOCOL", "TOKENS_VARIABLE", "TokenSet", "read_tokens"]

TOKENS_VARIABLE = "FRCRN_ACCEL_TOKENS"
SUBPROTOCOL = "frcrn-accel.bearer"  # of a WebSocket, with the token as another one: browsers can set no header there
_LEAST_CHARACTERS = 16


def read_tokens(path: Path | None) -> tuple[str, ...]:
    """The tokens in a file, one a line, and in the environment, with spaces between them.

    Empty lines, and those that begin with `#`, do not count.

    Args:
        path: The file; None for the environment alone.

    Returns:
        None at all if there is no file and the variable is not set or empty: then nobody is asked for one.

    Raises:
        ServeError: The file cannot be read or holds no token, or a token is too short or not printable ASCII.
    """
    tokens = os.environ.get(TOKENS_VARIABLE, "").split()
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            raise ServeError(f"the tokens in {str(path)!r} cannot be read: {reason}") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ServeError(f"{str(path)!r} holds no token: put one on a line of its own")
        tokens += found
    for token in tokens:
        if len(token) < _LEAST_CHARACTERS or not (token.isascii() and token.isprintable() and " " not in token):
            raise ServeError(
                f"a token must have at least {_LEAST_CHARACTERS} characters of ASCII and no space: "
                "make one with `openssl rand -hex 32`"
            )
    return tuple(tokens)


class TokenSet:
    """Tokens, compared in constant time.

    Args:
        tokens: If there are none, everybody may come in.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._digests)

    def admits(self, authorization: str | None, subprotocols: Iterable[str] = ()) -> bool:
        """Whether a request may come in.

        Args:
            authorization: Its header of that name.
            subprotocols: Those that a WebSocket offers.
        """
        if not self._digests:
            return True
        given = [_digest(token) for token in (_bearer(authorization), _offered(list(subprotocols))) if token]
        # All are compared, so that the time does not say which one it was.
        matches = [hmac.compare_digest(one, other) for one in given for other in self._digests]
        return any(matches)


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def _offered(subprotocols: list[str]) -> str | None:
    """The token after `SUBPROTOCOL`: base64url without padding."""
    if SUBPROTOCOL not in subprotocols[:-1]:
        return None
    text = subprotocols[subprotocols.index(SUBPROTOCOL) + 1]
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):  # UnicodeDecodeError is one
        return None


def _digest(token: str) -> bytes:
    """Of one length, which is then no hint at that of the token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
