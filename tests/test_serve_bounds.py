"""Bounds: on connections, on what one client may take, on time, on the log and on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import io
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

for _package in ("starlette", "uvicorn", "httpx", "websockets", "prometheus_client", "python_multipart"):
    pytest.importorskip(_package, reason="needs [serve] and httpx: nox -s tests")

import httpx
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

from frcrn_accel import AudioError, Denoiser, ServeError
from frcrn_accel.atomic import remove_leftovers, temporary_folder
from frcrn_accel.file_denoising import FileJob, FileReport
from frcrn_accel.printable import SafeFormatter
from frcrn_accel.processes import FileProcesses, Intake
from frcrn_accel.serve import Limits, Service
from frcrn_accel.serve.clients import Rates, Shares, client_of
from frcrn_accel.serve.logs import Sparing
from frcrn_accel.serve.upload import PacedAnswers
from serving import GatedBackend, Running, answer_to_drops, gated_denoiser, resident_bytes, running, wav
from waiting import until

NOISE = (3000 * np.random.default_rng(0).standard_normal(1_600)).astype(np.int16)
TOKEN = "a-token-of-twenty-some-characters"
COMMAND = [sys.executable, "-c", "from frcrn_accel.cli import main; main()", "serve"]
UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.fixture(scope="module")
def backend() -> GatedBackend:
    return GatedBackend(gain=0.5)


@pytest.fixture(scope="module")
def denoiser(backend: GatedBackend) -> Iterator[Denoiser]:
    with gated_denoiser(backend) as denoiser:
        yield denoiser


def test_an_answer_that_is_not_read_is_cut_off() -> None:
    """Of any path; here with a client that takes the head and nothing of the body."""
    given_up = []

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await JSONResponse("x" * 1_000)(scope, receive, send)
        except BaseException as error:
            given_up.append(type(error).__name__)
            raise

    async def take(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "path": "/openapi.json"}
    limits = Limits(slow_s=0.01, min_bytes_per_second=100_000)
    asyncio.run(asyncio.wait_for(PacedAnswers(answer, limits)(scope, receive, take), 60))
    assert given_up == ["_TooSlow"]


@contextlib.contextmanager
def serve(denoiser: Denoiser, folder: Path, **limits: float) -> Iterator[Running]:
    with running(denoiser, folder / "temporary", Limits(**{"drain_s": 20.0, **limits})) as run:
        yield run


@contextlib.contextmanager
def stream(run: Running) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{run.port}/v1/stream", open_timeout=60) as socket_:
        yield socket_


def is_closed(connection: socket.socket) -> bool:
    """Return whether the server has closed a connection, which it does without an answer."""
    connection.settimeout(20)
    try:
        return connection.recv(100) == b""
    except ConnectionError:
        return True


class TestConnections:
    def test_one_client_has_a_share(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with serve(denoiser, tmp_path, client_connections=4) as run, contextlib.ExitStack() as stack:
            held = [stack.enter_context(run.raw()) for _ in range(3)]  # the client of `run` holds the fourth
            assert run.client.get("/health").status_code == 200
            with run.raw() as refused:
                assert is_closed(refused)
            assert run.client.get("/health").status_code == 200
            text = run.client.get("/metrics").text
            assert "frcrn_accel_connections 4.0" in text
            assert "frcrn_accel_connections_refused_total 1.0" in text
            held[0].close()
            until(lambda: "frcrn_accel_connections 3.0" in run.client.get("/metrics").text, bool)
            with run.raw(UPGRADE) as other:
                assert other.recv(100).startswith(b"HTTP/1.1 101")
                assert "frcrn_accel_connections 4.0" in run.client.get("/metrics").text
            until(lambda: "frcrn_accel_connections 3.0" in run.client.get("/metrics").text, bool)

    def test_all_have_a_limit(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with serve(denoiser, tmp_path, max_connections=2) as run, run.raw():
            assert run.client.get("/health").status_code == 200
            with run.raw() as refused:
                assert is_closed(refused)

    def test_named_proxies_are_no_clients(self, denoiser: Denoiser, tmp_path: Path) -> None:
        limits = Limits(client_connections=1)
        with running(denoiser, tmp_path / "t", limits, trusted_proxies=["127.0.0.1"]) as run, run.raw(), run.raw():
            assert run.client.get("/health").status_code == 200

    def test_many_of_one_client_are_read_more_slowly(self, denoiser: Denoiser, tmp_path: Path) -> None:
        """Each counts as 3 pieces, its request as 2, and its head as 1: 100 of 600 are free, and then 50 a second."""
        with serve(denoiser, tmp_path, client_frames_per_s=300.0) as run, contextlib.ExitStack() as stack:
            began = time.monotonic()
            held = [
                stack.enter_context(run.raw(b"GET /health HTTP/1.1\r\nHost: a.localhost\r\n\r\n")) for _ in range(120)
            ]
            answers = [connection.recv(1_000) for connection in held]
            assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)
            assert 0.3 < time.monotonic() - began < 5

    def test_there_are_always_descriptors_left(self, tmp_path: Path) -> None:
        """A process that may have few of them takes fewer connections, so that accepting one never fails."""
        pytest.importorskip("onnxruntime")
        shell = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh"]
        process = subprocess.Popen(
            [*shell, *COMMAND, "--port", "0", "--backend", "ort", "--drain-s", "1"], stderr=subprocess.PIPE, text=True
        )
        try:
            lines = iter(process.stderr.readline, "")
            url = next(line.split("listening on ")[1].split()[0] for line in lines if "listening on" in line)
            warning = next(line for line in lines if "WARNING" in line)
            assert "at most 52 connections, since the limit of open files is 300 (ulimit -n)" in warning
            port = int(url.rstrip("/").rpartition(":")[2])
            with contextlib.ExitStack() as stack:
                idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 20)) for _ in range(350)]
                assert sum(map(is_closed, idle[100:])) == 250
            until(lambda: _status(f"{url}health"), lambda status: status == 200)
        finally:
            process.kill()
            rest = process.communicate()[1]
        assert "Traceback" not in rest
        assert len(rest) < 20_000


@pytest.mark.parametrize("number", [64, 263])
def test_too_few_descriptors_are_refused(number: int) -> None:
    pytest.importorskip("onnxruntime")
    shell = ["sh", "-c", f'ulimit -n {number}; exec "$@"', "sh"]
    done = subprocess.run(
        [*shell, *COMMAND, "--port", "0", "--backend", "ort"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"frcrn-accel: error: the limit of {number} open files (ulimit -n) is too low for 20 requests, "
    )
    assert last.endswith(" which need 264: raise it, or lower --concurrency or --queue")
    assert "Traceback" not in done.stderr


def _status(url: str) -> int:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).status_code
    return 0


class TestRequests:
    def test_many_in_a_row_are_slowed_down(self, denoiser: Denoiser, tmp_path: Path) -> None:
        """Sent without waiting for answers, they fill one piece; each counts as 2, so 100 a second are answered."""
        request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with serve(denoiser, tmp_path, client_frames_per_s=200.0) as run, run.raw(300 * request) as connection:
            began = time.monotonic()
            content = b""
            while content.count(b"alive") < 300:
                content += connection.recv(1 << 16)
            assert time.monotonic() - began > 0.8  # 200 are free
            assert content.count(b"HTTP/1.1 200") == 300

    def test_slow_bodies_of_one_client_leave_room(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with serve(denoiser, tmp_path, client_requests=2, concurrency=1, queue=3) as run:
            with run.raw(run.head(1_000)), run.raw(run.head(1_000)):
                until(lambda: run.service.active, lambda active: active == 2)
                response = run.client.post("/v1/denoise", content=wav(NOISE))
                assert response.status_code == 429
                assert "of this address" in response.json()["detail"]
                assert int(response.headers["retry-after"]) >= 1
            until(lambda: run.service.active, lambda active: active == 0)
            assert run.client.post("/v1/denoise", content=wav(NOISE)).status_code == 200

    def test_bytes_of_one_client(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with serve(denoiser, tmp_path, client_bytes=10_000) as run:
            with run.raw(run.head(9_000) + bytes(8_000)):
                until(lambda: run.service.active, lambda active: active == 1)
                until(lambda: sum(path.stat().st_size for path in run.folder.rglob("audio")), lambda size: size > 0)
                response = run.client.post("/v1/denoise", content=wav(NOISE))
                assert response.status_code == 429
                assert "too large together" in response.json()["detail"]
            until(lambda: run.service.active, lambda active: active == 0)
            assert run.client.post("/v1/denoise", content=wav(NOISE)).status_code == 200

    def test_an_upload_has_a_deadline(self, denoiser: Denoiser, tmp_path: Path) -> None:
        """However fast it comes: this one sends hundreds of times the least rate."""
        with serve(denoiser, tmp_path, upload_s=0.4, min_bytes_per_second=1) as run:
            with run.raw(run.head(1_000_000)) as connection:
                answer = answer_to_drops(connection, bytes(100))
            assert b"408 Request Timeout" in answer
            assert b"longer to arrive than the limit of 0.4 s" in answer
            until(run.leftovers, lambda left: left == [])

    def test_a_body_in_tiny_chunks_is_slowed_down(self, denoiser: Denoiser, tmp_path: Path) -> None:
        body = wav(NOISE)
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
        head = b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        with serve(denoiser, tmp_path, client_frames_per_s=1_000.0) as run, run.raw() as connection:
            began = time.monotonic()
            connection.sendall(head + chunks)
            answer = connection.recv(1_000)
            assert answer.startswith(b"HTTP/1.1 200")
            # 3,244 chunks; 2 s of them, and one slice of 680 more, are free.
            assert len(body) == 3_244
            assert time.monotonic() - began > 0.5
            big = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            with run.raw(head + big) as other:
                assert other.recv(1_000).startswith(b"HTTP/1.1 200")


class TestStreams:
    START = json.dumps({"type": "start", "sample_rate": 16_000})

    def test_one_client_has_a_share(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with serve(denoiser, tmp_path, client_streams=1) as run, stream(run) as one, stream(run) as other:
            one.send(self.START)
            one.recv(timeout=60)
            assert "this address has its limit of 1 streams" in json.loads(other.recv(timeout=60))["detail"]

    @pytest.mark.parametrize("message", [b"", '{"type": "reset"}', '{"type": "set"}'])
    def test_a_stream_without_audio_ends(self, denoiser: Denoiser, tmp_path: Path, message: bytes | str) -> None:
        with serve(denoiser, tmp_path, stream_idle_s=0.8) as run, stream(run) as socket_:
            socket_.send(self.START)
            socket_.recv(timeout=60)
            answers: list[str | bytes] = []
            ends = time.monotonic() + 60
            while (not answers or "Idle" not in str(answers[-1])) and time.monotonic() < ends:
                with contextlib.suppress(ConnectionClosed):  # the last answer may be there already
                    socket_.send(message)
                with contextlib.suppress(TimeoutError):
                    answers.append(socket_.recv(timeout=0.05))
            assert len(answers) > 1
            assert json.loads(answers[-1])["detail"] == "no audio for 0.8 s"

    def test_audio_keeps_it_open(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with serve(denoiser, tmp_path, stream_idle_s=1.0) as run, stream(run) as socket_:
            socket_.send(self.START)
            socket_.recv(timeout=60)
            until_s = time.monotonic() + 1.4
            while time.monotonic() < until_s:
                socket_.send(NOISE[:320].tobytes())
                assert len(socket_.recv(timeout=60)) == 640

    @pytest.mark.parametrize(
        ("opcode", "count"),
        [(Opcode.PING, 6_000), (Opcode.CONT, 6_000), (Opcode.BINARY, 6_000)],
        ids=["ping", "cont", "binary"],
    )
    def test_floods_of_frames_are_slowed_down(
        self, denoiser: Denoiser, tmp_path: Path, opcode: int, count: int
    ) -> None:
        """The server answers others at once, and reads the flood at its pace."""
        frame = Frame(opcode, b"", fin=opcode != Opcode.CONT).serialize(mask=True)
        first = Frame(Opcode.TEXT, b"{", fin=False).serialize(mask=True) if opcode == Opcode.CONT else b""
        start = b"" if opcode == Opcode.CONT else Frame(Opcode.TEXT, self.START.encode()).serialize(mask=True)
        with serve(denoiser, tmp_path, client_frames_per_s=500.0) as run, run.raw(UPGRADE) as flood:
            assert flood.recv(1_000).startswith(b"HTTP/1.1 101")
            flood.sendall(start + first + count * frame)
            began = time.monotonic()
            assert httpx.get(f"{run.url}/health", timeout=20).status_code == 200
            assert time.monotonic() - began < 1.5
            flood.settimeout(0.5)
            answers = b""
            with contextlib.suppress(TimeoutError):
                while len(answers) < 2 * count:
                    answers += flood.recv(1 << 16)
            # 1,000 are free, then 500 a second.
            assert len(answers) < 2 * count
            assert run.service.streams.open == 1

    @pytest.mark.parametrize("parts", [(b"\xff",), (b"{", b"\xc0}"), (b"\xe2\x82", b"\x28")])
    def test_text_that_is_not_utf_8(
        self, denoiser: Denoiser, tmp_path: Path, caplog: pytest.LogCaptureFixture, parts: tuple[bytes, ...]
    ) -> None:
        """A mistake of a client is no traceback in the log."""
        *first, last = [Frame(Opcode.CONT if n else Opcode.TEXT, part, fin=False) for n, part in enumerate(parts)]
        frames = b"".join(frame.serialize(mask=True) for frame in [*first, dataclasses.replace(last, fin=True)])
        with serve(denoiser, tmp_path) as run, run.raw(UPGRADE) as connection:
            assert connection.recv(1_000).startswith(b"HTTP/1.1 101")
            connection.sendall(frames)
            assert connection.recv(1_000)[2:4] == (1007).to_bytes(2, "big")
            run.line("WS /v1/stream")
        assert [record.msg for record in caplog.records if record.levelno >= logging.WARNING] == []

    def test_answers_to_pings_do_not_pile_up(self, denoiser: Denoiser, tmp_path: Path) -> None:
        """A client that sends pings and reads nothing: the server keeps no more than what a socket holds."""
        ping = Frame(Opcode.PING, bytes(125)).serialize(mask=True)
        with serve(denoiser, tmp_path, client_frames_per_s=1e6, stream_idle_s=3.0) as run:
            before = resident_bytes()
            with run.raw(UPGRADE) as flood, contextlib.suppress(ConnectionError):
                flood.recv(1_000)
                for _ in range(150):
                    flood.sendall(400 * ping)
            run.line("WS")
            assert resident_bytes() - before < 6 << 20


class TestAccess:
    def test_guesses_are_slowed_down(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with running(denoiser, tmp_path / "t", tokens=[TOKEN]) as run:
            wrong = [
                run.client.get("/v1/models", headers={"Authorization": f"Bearer wrong-{number}"}).status_code
                for number in range(10)
            ]
            began = time.monotonic()
            assert wrong == [401] * 10
            assert run.client.get("/metrics").status_code == 429
            assert time.monotonic() - began >= 1
            right = run.client.get("/v1/models", headers={"Authorization": f"Bearer {TOKEN}"})
            assert right.status_code == 200

    def test_metrics_may_be_open(self, denoiser: Denoiser, tmp_path: Path) -> None:
        with running(denoiser, tmp_path / "t", tokens=[TOKEN], open_metrics=True) as run:
            assert run.client.get("/metrics").status_code == 200
            assert run.client.get("/v1/models").status_code == 401

    def test_a_public_address_needs_tokens(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = subprocess.run(
            [*COMMAND, "--host", "0.0.0.0", "--port", "0"], capture_output=True, text=True, timeout=60
        )
        assert found.returncode == 2
        assert "no token is set: set some with --token-file, or give --insecure" in found.stderr.splitlines()[-1]


class TestLog:
    def record(self, text: str, **extra: str) -> logging.LogRecord:
        return logging.getLogger("test").makeRecord("test", logging.INFO, "", 0, text, (), None, extra=extra)

    def test_one_client_cannot_fill_it(self) -> None:
        log = Sparing(per_s=1e-6, ahead_s=3e6)
        passed = [log.filter(self.record("x", client="greedy")) for _ in range(1_000)]
        assert sum(passed) == 3
        record = self.record("y", client="modest")
        assert log.filter(record)
        assert record.getMessage() == "y (before it, 997 lines were left out)"

    def test_lines_of_other_packages_do_not_crowd_out_those_of_the_server(self) -> None:
        """uvicorn has a line for each invalid request, which does not name the client."""
        log = Sparing(per_s=1e-6, ahead_s=3e6)
        others = [
            logging.getLogger("uvicorn.error").makeRecord("uvicorn.error", logging.WARNING, "", 0, "x", (), None)
        ]
        assert sum(log.filter(record) for record in 1_000 * others) == 3
        assert log.filter(self.record("the engine failed"))

    @pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred", "\x00", "\u202e", "\x85", "\ud800"])
    def test_what_is_not_printable_is_escaped(self, text: str) -> None:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(SafeFormatter("%(message)s"))
        handler.emit(self.record(f"<{text}>"))
        line = stream.getvalue()
        assert line.endswith(">\n")
        assert line.removesuffix("\n").isprintable()

    def test_tracebacks_keep_their_lines(self) -> None:
        try:
            raise ValueError("x")
        except ValueError:
            record = self.record("failed")
            record.exc_info = sys.exc_info()
        assert "\nValueError: x" in SafeFormatter("%(message)s").format(record)


class TestShares:
    def test_what_is_given_back_can_be_taken(self) -> None:
        shares = Shares(2)
        assert [shares.take("a"), shares.take("a"), shares.take("a"), shares.take("b")] == [True, True, False, True]
        shares.give_back("a")
        assert shares.take("a")
        assert not shares.take("c", 3)

    def test_rates(self) -> None:
        now = [0.0]
        rates = Rates(10, 1, lambda: now[0])
        assert [rates.spend("a", 10), rates.spend("a", 5), rates.spend("b", 1)] == [0, 0.5, 0]
        now[0] = 0.5
        assert rates.spend("a", 1) == pytest.approx(0.1)
        now[0] = 100
        assert rates.spend("a", 10) == 0  # no more is saved than that
        assert rates.spend("a", 1) == pytest.approx(0.1)

    def test_rates_forgive_nothing(self) -> None:
        """A cap on the debt for one kind of request does not reduce an existing debt."""
        now = [0.0]
        rates = Rates(10, 1, lambda: now[0])
        assert rates.spend("a", 40) == 3
        assert rates.spend("a", 5, most_owed=20) == 3
        assert rates.spend("a", 1) == pytest.approx(3.1)

    def test_rates_forget(self) -> None:
        now = [0.0]
        rates = Rates(1, 1, lambda: now[0])
        for number in range(30_000):
            now[0] += 1e-6
            rates.spend(str(number))
        assert rates.known <= 10_000

    @pytest.mark.parametrize(
        ("address", "client"),
        [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("testclient", "testclient"),
            ("x" * 60_000, "x" * 64),
        ],
    )
    def test_clients(self, address: str, client: str) -> None:
        assert client_of({"client": (address, 1)}) == client
        assert client_of({"client": None}) == client_of({}) == "-"


class TestDisk:
    @pytest.mark.parametrize(
        ("number", "status", "detail"),
        [
            (errno.ENOSPC, 507, "no room for the file"),  # as without inodes
            (errno.EDQUOT, 507, "no room for the file"),
            (errno.EMFILE, 507, "too many files open"),
            (errno.ENFILE, 507, "too many files open"),
            (errno.EACCES, 500, "see the server log"),
            (errno.EROFS, 500, "see the server log"),
            (errno.EIO, 500, "see the server log"),
            (errno.ENOENT, 500, "see the server log"),
        ],
    )
    def test_no_folder_for_a_request(
        self,
        denoiser: Denoiser,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        status: int,
        detail: str,
    ) -> None:
        """Temporary shortages are a 507; any other error is a 500, and is logged."""
        with serve(denoiser, tmp_path) as run:
            make = Path.mkdir

            def refuse(path: Path, *args: object, **options: object) -> None:
                if path.parent == run.folder:
                    raise OSError(number, os.strerror(number))
                make(path, *args, **options)

            monkeypatch.setattr(Path, "mkdir", refuse)
            response = run.client.post("/v1/denoise", content=wav(NOISE))
            assert response.status_code == status
            assert detail in response.json()["detail"]
            run.line("cannot store a file" if status == 507 else "a request failed")
            monkeypatch.undo()
            assert run.client.post("/v1/denoise", content=wav(NOISE)).status_code == 200

    @pytest.mark.skipif(os.name != "posix", reason="elsewhere files are written in the process of the server")
    @pytest.mark.parametrize(
        ("number", "status"), [(errno.ENOSPC, 507), (errno.EMFILE, 507), (errno.EACCES, 500), (0, 500)]
    )
    @pytest.mark.parametrize("is_known", [True, False], ids=["of the result", "of the process"])
    def test_errors_of_the_process_for_files(
        self,
        denoiser: Denoiser,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        status: int,
        is_known: bool,
    ) -> None:
        def refuse(processes: FileProcesses, job: FileJob, intake: Intake) -> FileReport:
            system = OSError(number, os.strerror(number))
            if not is_known:
                raise system
            raise AudioError(f"{str(job.target)!r} cannot be written: {system.strerror}") from system

        with serve(denoiser, tmp_path) as run:
            monkeypatch.setattr(FileProcesses, "run", refuse)
            assert run.client.post("/v1/denoise", content=wav(NOISE)).status_code == status

    def test_the_folder_is_chosen_at_the_start(
        self, denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
        with pytest.raises(ServeError, match=r"cannot write temporary files to .*none: No such file"):
            Service(denoiser)
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        service = Service(denoiser)
        monkeypatch.setattr(tempfile, "tempdir", "/elsewhere")
        assert service.files.folder == tmp_path
        service.close()

    def test_folders_of_killed_servers_are_removed(self, denoiser: Denoiser, tmp_path: Path) -> None:
        """Those of this server, of another machine and of others are not."""
        code = (
            "import os, pathlib, sys; from frcrn_accel.atomic import temporary_folder\n"
            "with temporary_folder(pathlib.Path(sys.argv[1]), 'frcrn-accel-serve') as folder:\n"
            "    (folder / 'audio').write_bytes(b'secret')\n"
            "    os.kill(os.getpid(), 9)"
        )
        folder = tmp_path / "temporary"
        folder.mkdir()
        subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
        (left,) = folder.iterdir()
        assert (left / "audio").read_bytes() == b"secret"
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "file").touch()
        with temporary_folder(folder, "frcrn-accel-serve") as own:
            link = left.with_name(left.name[:-1] + ("0" if left.name[-1] != "0" else "1"))
            link.symlink_to(tmp_path / "elsewhere")
            remove_leftovers(folder)
            assert sorted(folder.iterdir()) == sorted([own, link])
            assert own.stat().st_mode & 0o777 == 0o700
            link.unlink()
        assert list(folder.iterdir()) == []
        assert (tmp_path / "elsewhere" / "file").exists()


def test_many_clients_at_once(denoiser: Denoiser, tmp_path: Path) -> None:
    """Whatever is counted is given back."""
    with serve(denoiser, tmp_path) as run, ThreadPoolExecutor(8) as pool:
        bodies = [wav(NOISE), b"x", b"", wav(NOISE[:0])] * 6

        def post(body: bytes) -> int:
            return httpx.post(f"{run.url}/v1/denoise", content=body, timeout=60).status_code

        statuses = list(pool.map(post, bodies))
        assert statuses == [200, 422, 422, 200] * 6
        until(lambda: run.service.active, lambda active: active == 0)
