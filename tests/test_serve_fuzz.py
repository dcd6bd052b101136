"""Mutated requests, messages and files, a few of each; `nox -s fuzz` sends many."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

for _package in ("starlette", "uvicorn", "httpx", "websockets", "prometheus_client", "python_multipart"):
    pytest.importorskip(_package, reason="needs [serve] and httpx: nox -s tests")

import fuzz

from frcrn_accel.serve import Limits
from serving import GatedBackend, Running, gated_denoiser, running
from waiting import until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    limits = Limits(slow_s=0.3, stream_idle_s=0.3, client_frames_per_s=1e6, drain_s=10.0)
    folder = tmp_path_factory.mktemp("serve") / "temporary"
    with gated_denoiser(GatedBackend(gain=0.5)) as denoiser, running(denoiser, folder, limits) as run:
        yield run


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of failures of the server, and of tasks whose failure nobody saw."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_requests(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    seen = fuzz.fuzz(server.port, islice(fuzz.requests(np.random.default_rng(0)), 250))
    assert {200, 400, 403, 404} <= seen.keys()
    assert server.client.get("/health").status_code == 200
    assert errors(caplog) == []


def test_messages(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    seen = fuzz.fuzz(server.port, islice(fuzz.conversations(np.random.default_rng(0)), 60))
    assert seen[101] >= 55
    assert server.client.get("/health").status_code == 200
    assert errors(caplog) == []


def test_files(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    seen = fuzz.fuzz_files(server.port, islice(fuzz.files(np.random.default_rng(0)), 60))
    assert seen.keys() <= {200, 413, 422}
    assert min(seen[200], seen[422]) > 5
    until(server.leftovers, lambda left: left == [])
    assert errors(caplog) == []


@pytest.mark.parametrize("head", [b"Host: localhost\r\n", b"Host: elsewhere\r\n"])
def test_a_body_that_cannot_be_parsed(server: Running, caplog: pytest.LogCaptureFixture, head: bytes) -> None:
    """Found by fuzzing: the application answered after the parser, which was a traceback in the log."""
    content = (
        b"POST /v1/denoise HTTP/1.1\r\n" + head + b"Transfer-Encoding: chunked\r\n\r\n4\r\nR\r\nIFF\r\n0\r\n\r\n"
    )
    answer = fuzz.exchange(server.port, content, 60)
    assert fuzz.statuses(answer) == [400]
    server.line("POST /v1/denoise")
    assert errors(caplog) == []
