"""The server does what its OpenAPI document says: requests made from the document, by Schemathesis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

for _package in ("schemathesis", "starlette", "uvicorn", "httpx", "websockets", "prometheus_client"):
    pytest.importorskip(_package, reason="needs [serve], httpx and schemathesis: nox -s serve")

import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from schemathesis import Case

from serving import GatedBackend, Running, gated_denoiser, running, wav

TOKEN = "a-token-of-twenty-some-characters"
NOISE = 0.1 * np.random.default_rng(0).standard_normal(1_600)
# What the document can only call "binary" is a file that the server can do something with.
FILES = {
    "audio/wav": wav(NOISE),
    "audio/flac": wav(NOISE, format="FLAC"),
    "audio/ogg": wav(NOISE, format="OGG"),
    "audio/mpeg": wav(NOISE, format="MP3"),
    "audio/aiff": wav(NOISE, format="AIFF"),
    "application/octet-stream": wav(np.zeros((10, 2)), 48_000),
}
for _media_type, _body in FILES.items():
    schemathesis.openapi.media_type(_media_type, st.just(_body))
schemathesis.openapi.format("binary", st.sampled_from(list(FILES.values())))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        gated_denoiser(GatedBackend(gain=0.5)) as denoiser,
        running(denoiser, tmp_path_factory.mktemp("serve") / "temporary", tokens=[TOKEN]) as run,
    ):
        yield run


@pytest.fixture(scope="module")
def document(server: Running) -> schemathesis.openapi.OpenApiSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_in_the_document(case: Case, server: Running) -> None:
    """Status, media type, headers and schema; no 5xx; what is wrong is refused, and what is right is not."""
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})
    assert server.service.active == 0
