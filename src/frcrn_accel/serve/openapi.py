"""The OpenAPI 3.1 document of the server. `tests/test_serve_schema.py` checks the server against it."""

from __future__ import annotations

from typing import Any

from frcrn_accel._version import __version__
from frcrn_accel.high_band import HIGH_BANDS
from frcrn_accel.serve.job import ARCHIVE_MEDIA_TYPE, FILM_MEDIA_TYPES, FORMATS, KEEP_CHOICES, MEDIA_TYPES
from frcrn_accel.serve.problems import PROBLEM_TYPE
from frcrn_accel.serve.result_headers import RESULT_HEADERS

__all__ = ["openapi_document"]

_NUMBER = {"type": "number", "minimum": 0}
_AUDIO = {"type": "string", "format": "binary"}
_PROBLEMS = {
    400: "The query or the form is invalid.",
    401: "The token is missing or unknown.",
    403: "The request comes from a web page of another origin, or is addressed to an unknown host name.",
    408: "The body arrived too slowly.",
    413: "The body is too large, or its audio too long.",
    415: "The body is compressed.",
    422: "The body is not audio that can be read and denoised, or it crashed the process that read it, or the format "
    "cannot hold the result.",
    429: "Too many requests are waiting, the client has too many in progress, or it sent too many wrong tokens.",
    500: "The engine failed.",
    503: "The request took too long, or the server is shutting down.",
    507: "The server's disk is full, or too many files are open.",
}
_DESCRIPTION = """Denoise files and live streams.

Live streams are at `/v1/stream`, a WebSocket, which OpenAPI cannot describe: see docs/serving.md."""


def openapi_document(*, has_tokens: bool, open_metrics: bool = False) -> dict[str, Any]:
    """Return the document.

    Args:
        has_tokens: Whether requests need a token.
        open_metrics: Whether those for the metrics need none.
    """
    denied = (401, 403, 429) if has_tokens else (403,)
    security: dict[str, Any] = {"security": [{"token": []}]} if has_tokens else {}
    components: dict[str, Any] = {"schemas": _SCHEMAS}
    if has_tokens:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "frcrn-accel",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/v1/denoise": {"post": {**_denoise(denied), **security}},
            "/v1/models": {
                "get": {
                    "operationId": "models",
                    "summary": "List the models.",
                    "responses": {"200": _json("The models.", "Models"), **_problems(*denied)},
                    **security,
                }
            },
            "/health": {
                "get": {
                    "operationId": "health",
                    "summary": "Check that the process is alive.",
                    "responses": {"200": _json("The process is alive.", "Status"), **_problems(403)},
                }
            },
            "/ready": {
                "get": {
                    "operationId": "ready",
                    "summary": "Check that the server takes requests: it is warm and not shutting down.",
                    "responses": {
                        "200": _json("The server takes requests.", "Status"),
                        **_problems(403),
                        "503": _problem("The server takes no requests; the detail says why.", True),
                    },
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Return metrics for Prometheus.",
                    "responses": {
                        "200": {
                            "description": "The metrics in the text format.",
                            "content": {"text/plain": {"schema": {"type": "string"}}},
                        },
                        **_problems(*((403,) if open_metrics else denied)),
                    },
                    **({} if open_metrics else security),
                }
            },
            "/openapi.json": {
                "get": {
                    "operationId": "openapi",
                    "summary": "Return this document.",
                    "responses": {
                        "200": {
                            "description": "OpenAPI 3.1.",
                            "content": {"application/json": {"schema": {"type": "object"}}},
                        },
                        **_problems(403),
                    },
                }
            },
        },
        "components": components,
    }


def _denoise(denied: tuple[int, ...]) -> dict[str, Any]:
    refused = [status for status in _PROBLEMS if status not in (401, 403) or status in denied]
    return {
        "operationId": "denoise",
        "summary": "Denoise a file.",
        "description": "The body is an audio file, of any media type, or a form with the file as its part `file`. "
        "The result keeps rate, channels, length, level and, where the format allows, the encoding. A film "
        "comes back as one with denoised sound; with a format, or if `Accept` prefers audio, as the sound of its "
        "first track.",
        "parameters": [
            {
                "name": "format",
                "in": "query",
                "description": "Format of the result; by default that of the body.",
                "schema": {"type": "string", "enum": list(FORMATS)},
            },
            {
                "name": "attenuation_limit_db",
                "in": "query",
                "description": "Maximum noise attenuation, dB; by default that of the server.",
                "schema": _NUMBER,
            },
            {
                "name": "high_band",
                "in": "query",
                "description": "Sound above 8 kHz, which the model does not process: attenuate its noise in step "
                "with the model (follow), or leave it out (drop); by default as the server was started.",
                "schema": {"type": "string", "enum": list(HIGH_BANDS)},
            },
            {
                "name": "keep",
                "in": "query",
                "description": "Return the speech, the noise, which is the input minus the speech, or an archive of "
                "both files; that of films holds their sound only if a format is given, or Accept prefers audio.",
                "schema": {"type": "string", "enum": list(KEEP_CHOICES), "default": "speech"},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                **{
                    media_type: {"schema": _AUDIO}
                    for media_type in sorted({*MEDIA_TYPES.values(), *FILM_MEDIA_TYPES.values()})
                },
                "application/octet-stream": {"schema": _AUDIO},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": _AUDIO},
                        "required": ["file"],
                        "additionalProperties": False,
                    }
                },
            },
        },
        "responses": {
            "200": {
                "description": "The denoised audio.",
                "headers": {
                    header.name: {
                        "description": header.description,
                        "required": header.required,
                        "schema": header.schema,
                    }
                    for header in RESULT_HEADERS
                },
                "content": {
                    media_type: {"schema": _AUDIO}
                    for media_type in [
                        *sorted({*MEDIA_TYPES.values(), *FILM_MEDIA_TYPES.values()}),
                        "application/octet-stream",
                        ARCHIVE_MEDIA_TYPE,
                    ]
                },
            },
            **_problems(*refused),
        },
    }


def _json(description: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


def _problems(*statuses: int) -> dict[str, Any]:
    return {str(status): _problem(_PROBLEMS[status], status in (429, 503)) for status in statuses}


def _problem(description: str, can_be_tried_again: bool) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": description,
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if can_be_tried_again:
        response["headers"] = {
            "Retry-After": {"description": "When to try again, s.", "schema": {"type": "integer", "minimum": 1}}
        }
    return response


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_TEXT = {"type": "string"}
_SCHEMAS = {
    "Problem": _object(
        {"type": _TEXT, "title": _TEXT, "status": {"type": "integer", "minimum": 400}, "detail": _TEXT}
    ),
    "Status": _object({"status": _TEXT}),
    "Models": _object(
        {
            "models": {
                "type": "array",
                "items": _object(
                    {
                        "name": _TEXT,
                        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                        "checkpoint_sha256": _TEXT,
                        "sample_rate_hz": {"type": "integer"},
                        "channels": {"type": "integer"},
                        "unets": {"type": "integer"},
                        "backend": _TEXT,
                        "precision": _TEXT,
                        "device": _TEXT,
                        "streams": {"type": "boolean"},
                        "stream_model": _TEXT,
                        "attenuation_limit_db": {"type": ["number", "null"]},
                        "high_band": {"type": "string", "enum": list(HIGH_BANDS)},
                    }
                ),
            }
        }
    ),
}
