"""Errors as problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

__all__ = ["PROBLEM_TYPE", "Problem", "handle_http_exception", "handle_problem", "unexpected_problem"]

PROBLEM_TYPE = "application/problem+json"


class Problem(Exception):
    """An error that is sent to the client.

    Args:
        status: HTTP status.
        detail: What happened and what to do.
        headers: Additional headers of the answer.

    Attributes:
        status, detail, headers: As given.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """Return the problem document."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return JSONResponse(document, self.status, self.headers, PROBLEM_TYPE)


async def handle_problem(request: Request, error: Exception) -> JSONResponse:
    """Answer with a problem that the server raised."""
    assert isinstance(error, Problem)
    return error.response()


async def handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that Starlette raised: an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    details = {404: "not found: see /openapi.json for the paths", 405: "method not allowed on this path"}
    return Problem(error.status_code, details.get(error.status_code, error.detail), error.headers).response()


def unexpected_problem() -> Problem:
    """Return the problem for an unexpected error, which is in the log."""
    return Problem(500, "internal server error; see the server log")
