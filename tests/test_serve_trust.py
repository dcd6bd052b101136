"""Whom the server trusts: hosts, origins, proxies, and what it does with requests that are made to confuse it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import numpy as np
import pytest

for _package in ("starlette", "uvicorn", "httpx", "websockets", "prometheus_client", "python_multipart"):
    pytest.importorskip(_package, reason="needs [serve] and httpx: nox -s tests")

import anyio
import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send
from websockets.sync.client import connect

from frcrn_accel import Denoiser, ServeError
from frcrn_accel.files import open_audio
from frcrn_accel.models import DEFAULT_MODEL, find_model
from frcrn_accel.processes import FileProcesses
from frcrn_accel.serve import Limits, Service, create_app, listen
from frcrn_accel.serve.result_headers import result_headers
from frcrn_accel.serve.server import Server
from serving import GatedBackend, Running, gated_denoiser, running, sound_file, wav
from waiting import until

NOISE = (3000 * np.random.default_rng(0).standard_normal(1_600)).astype(np.int16)
TOKEN = "a-token-of-twenty-some-characters"
UPGRADE = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SETTINGS = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    with gated_denoiser(GatedBackend(gain=0.5)) as denoiser:
        yield denoiser


@pytest.fixture(scope="module")
def server(denoiser: Denoiser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(denoiser, tmp_path_factory.mktemp("serve") / "temporary") as run:
        yield run


def answer(run: Running, request: str | bytes) -> bytes:
    """Send a request and return all that comes until the server closes the connection."""
    content = b""
    with run.raw() as connection, contextlib.suppress(ConnectionError):
        connection.settimeout(20)
        connection.sendall(request.encode("latin-1") if isinstance(request, str) else request)
        while chunk := connection.recv(1 << 16):
            content += chunk
    return content


class TestMounted:
    """The application below a prefix of another one."""

    @contextlib.contextmanager
    def client(self, denoiser: Denoiser, prefixes: tuple[str, ...], **options: Any) -> Iterator[Callable[..., Any]]:
        """Yield a function that does a request, without a lifespan."""
        service = Service(denoiser, Limits())
        app: Any = create_app(service, **options)
        for prefix in reversed(prefixes):
            app = Starlette(routes=[Mount(prefix, app)])

        def get(*paths: str, method: str = "GET", **more: Any) -> list[int]:
            async def ask() -> list[int]:
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    return [(await client.request(method, path, **more)).status_code for path in paths]

            return asyncio.run(ask())

        try:
            yield get
        finally:
            service.close()

    @pytest.mark.parametrize("prefixes", [(), ("/denoiser",), ("/a", "/b/c"), ("/v1",), ("/denoiser/v1",)])
    def test_tokens_and_origins_are_checked_below_any_prefix(
        self, denoiser: Denoiser, prefixes: tuple[str, ...]
    ) -> None:
        top = "".join(prefixes)
        paths = [f"{top}/v1/{name}" for name in ("models", "denoise", "stream", "nothing", "")]
        with self.client(denoiser, prefixes, tokens=[TOKEN]) as get:
            assert get(*paths) == [401] * 5
            assert get(*paths, headers={"Authorization": f"Bearer {TOKEN}"}) == [200, 405, 404, 404, 404]
            assert get(*paths, headers={"Origin": "https://evil.example"}) == [403] * 5
            assert get(f"{top}/health", f"{top}/ready", f"{top}/metrics")[::2] == [200, 401]

    def test_a_stream_below_a_prefix_needs_a_token(self, denoiser: Denoiser) -> None:
        service = Service(denoiser, Limits())
        app = Starlette(routes=[Mount("/denoiser", create_app(service, tokens=[TOKEN]))])
        sent: list[Any] = []
        scope = {
            "type": "websocket",
            "path": "/denoiser/v1/stream",
            "root_path": "",
            "headers": [(b"host", b"localhost")],
            "query_string": b"",
            "subprotocols": [],
            "extensions": {"websocket.http.response": {}},
        }

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(app(scope, receive, send))
        service.close()
        assert (sent[0]["type"], sent[0]["status"]) == ("websocket.http.response.start", 401)

    def test_ready_without_a_lifespan(self, denoiser: Denoiser) -> None:
        """Starlette runs no lifespan of a mounted application: the first request starts the warm-up."""
        service = Service(denoiser, Limits())
        app = Starlette(routes=[Mount("/denoiser", create_app(service))])

        async def wait() -> list[int]:
            statuses: list[int] = []
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                with anyio.fail_after(60):
                    while 200 not in statuses:
                        statuses.append((await client.get("/denoiser/ready")).status_code)
                        await service.start()
            return statuses

        assert asyncio.run(wait()) == [503, 200]
        service.close()

    def test_the_lifespan_of_the_other_application(self, denoiser: Denoiser) -> None:
        service = Service(denoiser, Limits())
        app = Starlette(routes=[Mount("/denoiser", create_app(service))], lifespan=lambda app: service.running())

        async def run() -> str:
            async with app.router.lifespan_context(app):
                await service.start()
                return service.not_ready

        assert asyncio.run(run()) == ""

    def test_metrics_count_the_paths_of_the_application(self, denoiser: Denoiser) -> None:
        service = Service(denoiser, Limits())
        app = Starlette(routes=[Mount("/denoiser", create_app(service))])

        async def ask() -> None:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                await client.get("/denoiser/v1/models")

        asyncio.run(ask())
        service.close()
        assert 'frcrn_accel_requests_total{path="/v1/models",status="200"} 1.0' in service.metrics.text().decode()


class TestHosts:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost", 200),
            ("LOCALHOST.:8000", 200),
            ("app.localhost:1", 200),
            ("127.0.0.1", 200),
            ("127.9.9.9:80", 200),
            ("[::1]:8000", 200),
            ("192.168.1.7:8000", 200),
            ("evil.example", 403),
            ("evil.example:8000", 403),
            ("localhost.evil.example", 403),
            ("evillocalhost", 403),
            ("127.0.0.1.evil.example", 403),
            ("localhost@evil.example", 403),
            ("[evil", 403),
            ("", 403),
            ("localhost, evil.example", 403),
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/models", "/", "/metrics"])
    def test_by_default_loopback_and_addresses(self, server: Running, host: str, status: int, path: str) -> None:
        response = server.client.get(path, headers={"Host": host})
        assert response.status_code == status
        if status == 403:
            assert "--allow-host" in response.json()["detail"]

    def test_rebinding_needs_more_than_an_equal_origin(self, server: Running) -> None:
        """DNS rebinding: the page's own name resolves to this server, so its origin equals the host."""
        headers = {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
        assert server.client.get("/v1/models", headers=headers).status_code == 403
        head = "GET /v1/stream HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n"
        assert answer(server, head + UPGRADE + "\r\n").startswith(b"HTTP/1.1 403")

    def test_names_that_are_allowed(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with running(denoiser, tmp_path / "t", allowed_hosts=["Denoiser.example.", "::1"]) as run:
            for host, status in (("denoiser.example:443", 200), ("sub.denoiser.example", 403), ("[::1]", 200)):
                assert run.client.get("/v1/models", headers={"Host": host}).status_code == status
        with running(denoiser, tmp_path / "t", allowed_hosts=["*"]) as run:
            assert run.client.get("/v1/models", headers={"Host": "any.example"}).status_code == 200

    @pytest.mark.parametrize("name", ["https://x.example", "x.example:80", "x/y", "", "a b"])
    def test_what_is_no_name(self, denoiser: Denoiser, name: str) -> None:
        service = Service(denoiser)
        with pytest.raises(ServeError, match="invalid host name"):
            create_app(service, allowed_hosts=[name])
        service.close()


class TestConfusingRequests:
    @pytest.mark.parametrize("origin", ["http://[evil", "http://]", "://", "[", "\xff", "http://[::1", "x" * 5_000])
    def test_origins_that_are_no_urls(self, server: Running, origin: str) -> None:
        headers = {"Origin": origin.encode("latin-1")}
        assert server.client.get("/v1/models", headers=headers).status_code == 403

    @pytest.mark.parametrize(
        "charset", ["undefined", "idna", "punycode", "base64", "rot13", "nosuch", "utf-16", "a" * 500, "\xff", ""]
    )
    def test_charsets_of_forms(self, server: Running, charset: str) -> None:
        body = b'--b\r\nContent-Disposition: form-data; name="\xff\xfe"; filename="x"\r\n\r\nx\r\n--b--\r\n'
        content_type = f"multipart/form-data; boundary=b; charset={charset}".encode("latin-1")
        response = server.client.post("/v1/denoise", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 400
        assert response.headers["content-type"] == "application/problem+json"

    @SETTINGS
    @given(st.binary(max_size=60), st.binary(max_size=200), st.sampled_from(["undefined", "utf-8", "utf-7", "idna"]))
    def test_any_form(self, server: Running, disposition: bytes, content: bytes, charset: str) -> None:
        body = b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
        headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
        assert server.client.post("/v1/denoise", content=body, headers=headers).status_code in (400, 422)

    @pytest.mark.parametrize(
        "head",
        [
            "POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\ntransfer-encoding: Chunked\r\ncontent-length: 0\r\n\r\n",
            "POST /v1/denoise HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            "GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "POST /health HTTP/2.0\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",
            "POST /health HTTP/1.2\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",
            "POST /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n",
            "POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n",
        ],
    )
    def test_heads_that_can_be_read_in_two_ways_are_refused_and_the_connection_closed(
        self, server: Running, head: str
    ) -> None:
        content = answer(server, head + "0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert content.startswith(b"HTTP/1.1 400")
        assert content.count(b"HTTP/1.1") == 1

    @pytest.mark.parametrize(
        ("line", "more"),
        [
            ("GET /v1/stream", "Content-Length: 5\r\n"),
            ("GET /v1/stream", "Transfer-Encoding: chunked\r\n"),
            ("POST /v1/stream", "Content-Length: 5\r\n"),
            ("GET /v1/stream", "".join(f"X-{number}: 1\r\n" for number in range(200))),
            ("GET /v1/stream?" + "x" * 20_000, ""),
            ("GET /v1/stream", f"X-Long: {'x' * 20_000}\r\n"),
            ("GET /v1/stream?" + "x" * 40_000, "Content-Length: 1000000\r\n"),
        ],
        ids=["length", "chunked", "post", "headers", "query", "header", "query and length"],
    )
    def test_handshakes_that_are_none_are_answered_and_closed(self, server: Running, line: str, more: str) -> None:
        content = answer(server, f"{line} HTTP/1.1\r\nHost: localhost\r\n{more}{UPGRADE}\r\n")
        assert content.startswith(b"HTTP/1.1 400")
        assert server.client.get("/health").status_code == 200

    @SETTINGS
    @given(
        st.sampled_from(["GET", "POST", "PUT", "OPTIONS", "HEAD"]),
        st.lists(
            st.tuples(
                st.sampled_from(["Content-Length", "Transfer-Encoding", "Sec-WebSocket-Key", "Upgrade", "X-Y", "TE"]),
                st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=9),
            ),
            max_size=4,
        ),
    )
    def test_any_handshake_is_answered_and_closed(
        self, server: Running, method: str, headers: list[tuple[str, str]]
    ) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers)
        # A wrong version: what is a handshake is refused too.
        upgrade = UPGRADE.replace("13", "12")
        content = answer(server, f"{method} /v1/stream HTTP/1.1\r\nHost: localhost\r\n{more}{upgrade}\r\n")
        assert content.startswith(b"HTTP/1.1 4")

    def test_a_handshake_that_the_application_does_not_answer(self, denoiser: Denoiser, tmp_path: Path) -> None:
        service = Service(denoiser, Limits(slow_s=0.2))
        inner = create_app(service)
        left = threading.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "websocket":
                await inner(scope, receive, send)
                return
            while (await receive())["type"] != "websocket.disconnect":
                pass
            left.set()

        with listen("127.0.0.1", 0) as listener:
            server = Server(app, service)
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            try:
                run = Running(listener.getsockname()[1], service, tmp_path, None, None)
                until(lambda: service.not_ready, lambda reason: not reason)  # or the warm-up leaves a folder
                began = time.perf_counter()
                answer(run, f"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n")
                assert time.perf_counter() - began >= 0.2
                assert left.wait(20)
            finally:
                server.should_exit = True
                thread.join(60)


class TestNames:
    @pytest.mark.parametrize("name", ["frcrn-small", "降噪", "modèle", "100% gut", "a\r\nX-Evil: 1", "\udcff", "😀"])
    def test_headers_hold_any_name(self, denoiser: Denoiser, tmp_path: Path, name: str) -> None:
        (tmp_path / "a.wav").write_bytes(wav(NOISE))
        report = denoiser.denoise_file(tmp_path / "a.wav", tmp_path / "b.wav")

        class Named:
            model = type("Model", (), {"name": name})
            backend = name

        values = result_headers(Named(), report)
        for header in ("X-Model", "X-Backend"):
            assert values[header].isascii()
            assert values[header].isprintable()
            assert unquote(values[header]) == name.encode("utf-8", "replace").decode()
        assert values["X-Audio-Seconds"] == "0.100000"

    def test_a_model_of_another_script(self, tmp_path: Path) -> None:
        name = "降噪降ab"  # as many bytes as the name in the file
        path = tmp_path / "model.onnx"
        path.write_bytes(find_model(DEFAULT_MODEL).path.read_bytes().replace(DEFAULT_MODEL.encode(), name.encode()))
        denoiser = Denoiser(path, backend=GatedBackend(gain=0.5))
        with denoiser, running(denoiser, tmp_path / "t") as run:
            response = run.client.post("/v1/denoise", content=wav(NOISE))
            assert (response.status_code, unquote(response.headers["x-model"])) == (200, name)
            assert name in str(run.client.get("/v1/models").json())
            assert run.client.get("/ready").status_code == 200
            with connect(f"ws://127.0.0.1:{run.port}/v1/stream", open_timeout=60) as stream:
                stream.send('{"type": "start", "sample_rate": 16000}')
                assert json.loads(stream.recv(timeout=60))["type"] == "started"


class TestReports:
    """Reports from a file process that a malicious file has taken over."""

    LIES: ClassVar = {
        "another file": lambda report: {"target": Path(__file__)},
        "the source": lambda report: {"target": report.target.with_name("audio")},
        "a quote": lambda report: {"target": report.target.rename(report.target.with_suffix('.wav"; x="'))},
        "no result": lambda report: {"target": report.target.with_suffix(".flac")},
        "no duration": lambda report: {"duration_s": math.nan},
        "no time": lambda report: {"processing_s": -1.0},
        "no count": lambda report: {"clipped_samples": -1},
    }

    @pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
    @pytest.mark.skipif(os.name != "posix", reason="elsewhere files are read in the process of the server")
    def test_a_report_that_cannot_be_true_is_refused(
        self, denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Callable[..., Any]
    ) -> None:
        honest = FileProcesses.run

        def run_and_lie(*given: Any) -> Any:
            report = honest(*given)
            return dataclasses.replace(report, **lie(report))

        monkeypatch.setattr(FileProcesses, "run", run_and_lie)
        with running(denoiser, tmp_path / "t") as run:
            response = run.client.post("/v1/denoise", content=wav(NOISE))
            assert (response.status_code, response.json()["detail"]) == (
                422,
                "the file cannot be denoised: its process sent an invalid report",
            )
            assert "nan" not in run.client.get("/metrics").text.lower()


class TestProxies:
    FORWARDED: ClassVar = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}

    def test_headers_of_others_are_not_believed(self, server: Running) -> None:
        server.client.get("/v1/models", headers=self.FORWARDED)
        assert server.line("/v1/models").startswith("127.0.0.1 GET")

    def test_those_of_a_named_proxy_are(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with running(denoiser, tmp_path / "t", trusted_proxies=["127.0.0.0/8"]) as run:
            run.client.get("/v1/models", headers=self.FORWARDED)
            assert run.line("/v1/models").startswith("203.0.113.9 GET")
            run.client.get("/v1/models", headers={"X-Forwarded-For": b"\x1b[31mforged\xff " + b"x" * 3_000})
            line = run.line("/v1/models")
            assert line.isprintable()
            assert len(line) < 300

    @pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.1/8", ""])
    def test_what_is_no_proxy(self, denoiser: Denoiser, proxy: str) -> None:
        service = Service(denoiser)
        with pytest.raises(ServeError, match="invalid proxy"):
            Server(create_app(service), service, [proxy])
        service.close()


def test_silence_at_a_high_rate_becomes_ogg(server: Running) -> None:
    """libvorbis puts a first block of any size on the stack: 11 s at 192 kHz in one piece end the process."""
    body = wav(np.zeros(11 * 192_000, np.int16), 192_000, format="FLAC")
    response = server.client.post("/v1/denoise?format=ogg", content=body)
    assert response.status_code == 200
    file = open_audio(sound_file(response.content))
    assert (file.sample_rate_hz, file.samples) == (192_000, 11 * 192_000)
