"""The headers of a denoised file, in one table for the answer, for CORS and for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from frcrn_accel.denoiser import Denoiser, FileReport

__all__ = ["RESULT_HEADERS", "ResultHeader", "result_headers"]

_NUMBER = {"type": "number", "minimum": 0}
_LONGEST = 500
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")  # what a header may hold as it is


@dataclass(frozen=True)
class ResultHeader:
    """A header of a denoised file.

    Attributes:
        name: Its name.
        description: One sentence about it.
        schema: JSON schema of its value.
        value: Returns the value; "" leaves the header out.
        required: Whether it is always sent.
    """

    name: str
    description: str
    schema: dict[str, Any]
    value: Callable[[Denoiser, FileReport], str]
    required: bool = True


RESULT_HEADERS = (
    ResultHeader(
        "X-Processing-Seconds",
        "Processing time, decoding and encoding included.",
        _NUMBER,
        lambda denoiser, report: f"{report.processing_s:.6f}",
    ),
    ResultHeader(
        "X-Audio-Seconds",
        "Duration of the audio.",
        _NUMBER,
        lambda denoiser, report: f"{report.duration_s:.6f}",
    ),
    ResultHeader(
        "X-Real-Time-Factor",
        "Processing time over duration; missing if the file has no audio.",
        _NUMBER,
        lambda denoiser, report: f"{report.real_time_factor:.6f}" if report.duration_s else "",
        required=False,
    ),
    ResultHeader(
        "X-Model",
        "Name of the model; characters other than ASCII are percent-encoded as UTF-8.",
        {"type": "string"},
        lambda denoiser, report: denoiser.model.name,
    ),
    ResultHeader(
        "X-Backend",
        "Name of the backend, encoded likewise.",
        {"type": "string"},
        lambda denoiser, report: denoiser.backend,
    ),
    ResultHeader(
        "X-Clipped-Samples",
        "Samples beyond full scale that an integer encoding clipped.",
        {"type": "integer"},
        lambda denoiser, report: str(report.clipped_samples),
    ),
    ResultHeader(
        "X-Warnings",
        "What was missing or damaged in the file, and what the result cannot keep, a line each, encoded likewise;"
        " absent if there are none.",
        {"type": "string"},
        lambda denoiser, report: _shortened("\n".join(report.warnings)),
        required=False,
    ),
)


def _shortened(text: str) -> str:
    """Cut a text to a length that clients and proxies take in a header, even if each character is encoded."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def result_headers(denoiser: Denoiser, report: FileReport) -> dict[str, str]:
    """Return the headers of a denoised file, by name.

    Names of models and backends may hold any character: those that are not ASCII are percent-encoded as UTF-8.
    """
    values = {header.name: header.value(denoiser, report) for header in RESULT_HEADERS}
    return {name: quote(value, safe=_PLAIN, errors="replace") for name, value in values.items() if value}
