"""Ready means that it works: an engine that hangs or fails, and files that end the process that reads them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

for _package in ("starlette", "uvicorn", "httpx", "websockets", "prometheus_client", "python_multipart"):
    pytest.importorskip(_package, reason="needs [serve] and httpx: nox -s tests")

import httpx
from websockets.sync.client import connect

from frcrn_accel.serve import Limits
from frcrn_accel.serve.threads import Slots, in_thread
from frcrn_accel.serve.watch import EngineWatch
from serving import GatedBackend, Running, gated_denoiser, running, wav
from waiting import until

NOISE = (3000 * np.random.default_rng(0).standard_normal(8_000)).astype(np.int16)


@pytest.fixture
def backend() -> GatedBackend:
    return GatedBackend(gain=0.5)


@pytest.fixture
def limits() -> Limits:
    return Limits(timeout_s=0.4, stall_s=0.2, concurrency=2, drain_s=5.0)


@pytest.fixture
def run(backend: GatedBackend, limits: Limits, tmp_path: Path) -> Iterator[Running]:
    with gated_denoiser(backend) as denoiser, running(denoiser, tmp_path / "temporary", limits) as run:
        yield run
        backend.gate.set()
        backend.files_gate.set()


def ready(run: Running) -> tuple[int, str]:
    response = run.client.get("/ready")
    return response.status_code, response.json().get("detail", "")


def post(run: Running) -> httpx.Response:
    return run.client.post("/v1/denoise", content=wav(NOISE))


class TestHangingEngine:
    def test_the_time_limit_of_files_holds(self, run: Running, backend: GatedBackend) -> None:
        assert ready(run)[0] == 200
        backend.files_gate.clear()
        with ThreadPoolExecutor(3) as pool:  # two are computed, and one waits
            answers = [future.result(30) for future in [pool.submit(post, run) for _ in range(3)]]
        assert [answer.status_code for answer in answers] == [503] * 3
        assert "longer than the limit of 0.4 s" in answers[0].json()["detail"]
        assert run.leftovers() == []
        assert ready(run) == (503, "the engine has not answered for 0.2 s")
        backend.files_gate.set()
        until(lambda: ready(run)[0], lambda status: status == 200)
        until(lambda: post(run).status_code, lambda status: status == 200)

    def test_streams_end(self, run: Running, backend: GatedBackend) -> None:
        backend.gate.clear()
        with connect(f"ws://127.0.0.1:{run.port}/v1/stream", open_timeout=60) as stream:
            stream.send('{"type": "start", "sample_rate": 16000}')
            stream.recv(timeout=60)
            stream.send(NOISE.tobytes())
            error = json.loads(stream.recv(timeout=60))
        assert (error["title"], error["detail"]) == ("The engine stalled", "no answer from the engine for 0.2 s")
        assert ready(run) == (503, "the engine has not answered for 0.2 s")
        backend.gate.set()
        until(lambda: ready(run)[0], lambda status: status == 200)

    @pytest.mark.parametrize("hangs_from", ["warm-up", "file"])
    def test_sigterm_ends_the_server(self, hangs_from: str, tmp_path: Path) -> None:
        script = Path(__file__).with_name("hanging_server.py")
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, str(script), hangs_from, "0.3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        try:
            port = int(process.stdout.readline())
            if hangs_from == "file":
                assert process.stdout.readline() == "ready\n"
                response = httpx.post(f"http://127.0.0.1:{port}/v1/denoise", content=wav(NOISE), timeout=60)
                assert response.status_code == 503
            assert process.stdout.readline() == "hangs\n"
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            errors = process.communicate(timeout=60)[1]
            took_s = time.monotonic() - began
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 2
        assert "the engine did not answer" in errors.splitlines()[-1]
        assert took_s < 0.3 + 2
        assert list(tmp_path.glob("*frcrn*")) == []


class TestFailingEngine:
    @pytest.fixture
    def limits(self) -> Limits:
        """The usual times: a busy machine must not fail for another reason."""
        return Limits(drain_s=5.0)

    def test_three_failures_in_a_row_and_one_good_call(self, run: Running, backend: GatedBackend) -> None:
        backend.broken = True
        for number in range(3):
            assert ready(run)[0] == 200, number
            assert post(run).status_code == 500
        assert ready(run) == (503, "the engine failed 3 times in a row")
        backend.broken = False
        assert post(run).status_code == 200
        assert ready(run)[0] == 200

    def test_without_requests_the_server_tries_by_itself(self, run: Running, backend: GatedBackend) -> None:
        """A load balancer sends no requests to a server that is not ready."""
        backend.broken = True
        for _ in range(3):
            post(run)
        backend.broken = False
        until(lambda: ready(run)[0], lambda status: status == 200)

    def test_bad_files_are_no_failures(self, run: Running) -> None:
        for _ in range(4):
            assert run.client.post("/v1/denoise", content=b"no audio").status_code == 422
        assert ready(run)[0] == 200


class TestEngineWatch:
    def test_a_stall_is_calls_without_answers(self) -> None:
        now = [0.0]
        watch = EngineWatch(10, lambda: now[0])
        now[0] = 100
        assert watch.problem == ""  # no calls
        with watch.call():
            now[0] = 110
            assert watch.problem == ""
            with watch.call():
                now[0] = 111
                assert watch.has_stalled
            assert watch.problem == ""  # one was answered
            now[0] = 122
            assert watch.problem == "the engine has not answered for 10 s"
        assert watch.problem == ""
        assert not watch.is_busy


class TestThreads:
    def test_an_exit_does_not_end_the_event_loop(self) -> None:
        with pytest.raises(RuntimeError, match=r"the work ended with SystemExit"):
            asyncio.run(in_thread(sys.exit))


class TestSlots:
    def test_a_slot_outlives_a_thread_that_cannot_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        async def run() -> None:
            slots = Slots(1)
            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refuse)
                with pytest.raises(RuntimeError, match="can't start new thread"):
                    await slots.run(int, "a")
            assert slots.running == 0
            assert await asyncio.wait_for(slots.run(int, "a"), 60) == 0

        asyncio.run(run())

    def test_a_call_that_is_cancelled_as_another_ends_gets_no_slot(self) -> None:
        gate = threading.Event()
        threads: list[threading.Thread] = []

        def work() -> bool:
            threads.append(threading.current_thread())
            return gate.wait(60)

        async def run() -> None:
            slots = Slots(1)
            first = asyncio.create_task(slots.run(work, "a"))
            second = asyncio.create_task(slots.run(work, "b"))
            while not (threads and slots.waiting):
                await asyncio.sleep(0)
            gate.set()
            threads[0].join()  # its end is in the queue of the loop, before the cancellation
            second.cancel()
            assert await asyncio.wait_for(first, 60)
            with pytest.raises(asyncio.CancelledError):
                await second
            assert (slots.running, slots.waiting) == (0, 0)
            assert await asyncio.wait_for(slots.run(int, "c"), 60) == 0

        asyncio.run(run())

    def test_turns_go_to_whoever_has_the_fewest(self) -> None:
        gates = {name: threading.Event() for name in "abcde"}
        order: list[str] = []

        def work(name: str) -> str:
            order.append(name)
            assert gates[name].wait(60)
            return name

        async def run() -> None:
            slots = Slots(2)
            tasks = {
                name: asyncio.create_task(slots.run(lambda name=name: work(name), who))
                for name, who in (("a", "greedy"), ("b", "greedy"), ("c", "greedy"), ("d", "greedy"), ("e", "modest"))
            }
            while len(order) < 2:
                await asyncio.sleep(0)
            assert (slots.running, slots.waiting) == (2, 3)
            tasks["d"].cancel()
            gates["a"].set()
            assert await tasks["a"] == "a"
            while len(order) < 3:
                await asyncio.sleep(0)
            assert order[2] == "e"
            tasks["b"].cancel()  # its thread keeps the slot
            await asyncio.sleep(0)
            assert slots.running == 2
            for gate in gates.values():
                gate.set()
            assert [await tasks["e"], await tasks["c"]] == ["e", "c"]
            while slots.running:
                await asyncio.sleep(0)

        asyncio.run(asyncio.wait_for(run(), 60))
