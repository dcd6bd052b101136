"""Tokens for the use of the server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from frcrn_accel.errors import ServeError

__all__ = ["SUBPROTOCOL", "TOKENS_VARIABLE", "TokenSet", "read_tokens"]

TOKENS_VARIABLE = "FRCRN_ACCEL_TOKENS"
SUBPROTOCOL = "frcrn-accel.bearer"  # followed by the token: browsers cannot set headers of a WebSocket
_MIN_CHARACTERS = 16


def read_tokens(path: Path | None) -> tuple[str, ...]:
    """Read the tokens in a file, one per line, and in the environment, separated by spaces.

    Empty lines and lines that start with `#` are skipped.

    Args:
        path: The file; None to read only the environment variable `FRCRN_ACCEL_TOKENS`.

    Returns:
        The tokens; empty if there are none, in which case the server requires none.

    Raises:
        ServeError: The file cannot be read, or it or the environment variable has no token, or a token is too short
            or not printable ASCII.
    """
    given = os.environ.get(TOKENS_VARIABLE)
    tokens = (given or "").split()
    if given is not None and not tokens:  # such as the output of a command that failed
        raise ServeError(f"no token in {TOKENS_VARIABLE}: unset it, or write tokens separated by spaces")
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise ServeError(f"cannot read tokens from {str(path)!r}: {reason}") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ServeError(f"no token in {str(path)!r}: write one token per line")
        tokens += found
    for token in tokens:
        if len(token) < _MIN_CHARACTERS or not (token.isascii() and token.isprintable() and " " not in token):
            raise ServeError(
                f"a token must have at least {_MIN_CHARACTERS} ASCII characters and no space: "
                "create one with `openssl rand -hex 32`"
            )
    return tuple(tokens)


class TokenSet:
    """Tokens, compared in constant time.

    Args:
        tokens: The valid tokens; if there are none, every request is admitted.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._digests = [_digest(token) for token in tokens]

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._digests)

    def admits(self, authorization: str | None, subprotocols: Iterable[str] = ()) -> bool:
        """Return whether a request has a valid token.

        Args:
            authorization: Its `Authorization` header.
            subprotocols: The subprotocols that a WebSocket client offers.
        """
        if not self._digests:
            return True
        given = [_digest(token) for token in (_bearer(authorization), _offered(list(subprotocols))) if token]
        # Compare all, so that the time does not depend on which one matches.
        matches = [hmac.compare_digest(one, other) for one in given for other in self._digests]
        return any(matches)


def _bearer(authorization: str | None) -> str | None:
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip(" \t") if scheme.lower() == "bearer" else None


def _offered(subprotocols: list[str]) -> str | None:
    """Return the token that follows `SUBPROTOCOL`, in base64url without padding."""
    if SUBPROTOCOL not in subprotocols[:-1]:
        return None
    text = subprotocols[subprotocols.index(SUBPROTOCOL) + 1]
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:  # also the errors of base64 and of UTF-8
        return None


def _digest(token: str) -> bytes:
    """Hash a token, so that the time of a comparison does not depend on its length."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
