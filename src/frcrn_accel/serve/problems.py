"""Errors as answers: problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

__all__ = ["PROBLEM_TYPE", "Problem", "handle_http_exception", "handle_problem", "unexpected_problem"]

PROBLEM_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        detail: What happened and what to do, for a person.
        headers: More headers of the answer.

    Attributes:
        status, detail, headers: The arguments.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})

    def response(self) -> JSONResponse:
        """The document."""
        document = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
        return JSONResponse(document, self.status, self.headers, PROBLEM_TYPE)


async def handle_problem(request: Request, error: Exception) -> JSONResponse:
    """For errors that the server raises."""
    assert isinstance(error, Problem)
    return error.response()


async def handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    """For errors that Starlette raises: no such path, no such method."""
    assert isinstance(error, HTTPException)
    details = {404: "there is nothing here: /openapi.json says what there is", 405: "this path has other methods"}
    return Problem(error.status_code, details.get(error.status_code, error.detail), error.headers).response()


def unexpected_problem() -> Problem:
    """For errors that nobody expected; what they are is in the log."""
    return Problem(500, "the server failed on this request; its log says how")
