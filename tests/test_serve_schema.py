"""Check the server against its OpenAPI document, with requests that Schemathesis generates from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

for _package in ("schemathesis", "starlette", "uvicorn", "httpx", "websockets", "prometheus_client"):
    pytest.importorskip(_package, reason="needs [serve], httpx and schemathesis: nox -s tests")

import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from frcrn_accel.serve import Limits
from frcrn_accel.serve.openapi import openapi_document
from serving import GatedBackend, Running, gated_denoiser, running, wav
from waiting import until

TOKEN = "a-token-of-twenty-some-characters"
NOISE = 0.1 * np.random.default_rng(0).standard_normal(1_600)
# The document only says "binary": send files that the server can denoise.
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
        running(
            denoiser, tmp_path_factory.mktemp("serve") / "temporary", Limits(client_guesses=100_000), tokens=[TOKEN]
        ) as run,
    ):
        yield run


DOCUMENT = schemathesis.openapi.from_dict(openapi_document(has_tokens=True))
OPERATIONS = {result.ok().label: result.ok() for result in DOCUMENT.get_all_operations()}

SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_every_answer_is_in_the_document(server: Running, name: str, mode: GenerationMode) -> None:
    """Status, media type, headers and schema match; no 5xx; invalid requests are refused, valid ones are not."""
    served = server.client.get("/openapi.json").json()
    assert served == DOCUMENT.raw_schema
    statuses = set()

    @given(case=OPERATIONS[name].as_strategy(generation_mode=mode))
    @SETTINGS
    def check(case: Case) -> None:
        response = case.call(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"})
        # An empty list is nothing in a query or a form: what was to make the request invalid must have been sent.
        sent = parse_qs(urlsplit(str(response.request.url)).query, keep_blank_values=True)
        assume(set(case.query or {}) <= set(sent))
        if isinstance(case.body, dict):
            parts = re.findall(rb'form-data; name="([^"]*)"', bytes(response.request.body or b""))
            assume({part.decode() for part in parts} == set(case.body))
        case.validate_response(response)
        statuses.add(response.status_code)

    try:
        check()
    except Unsatisfiable:  # a request without parameters cannot be invalid
        assert mode is GenerationMode.NEGATIVE
        assert name != "POST /v1/denoise"
        return
    if mode is GenerationMode.POSITIVE:
        assert statuses == {200}
    elif name == "POST /v1/denoise":
        assert statuses & {400, 422}
    until(lambda: server.service.active, lambda active: active == 0)  # a request counts until its answer is sent
