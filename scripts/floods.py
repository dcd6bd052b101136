"""Flood a server on this machine, and measure what another client notices: `python scripts/floods.py [--rounds 3]`.

Each flood comes from one address, 127.0.0.1, in a process of its own. The other client has the address 127.0.0.2 (on
Linux, all of 127.0.0.0/8 is this machine) and asks for `/health`, and for a second of audio to be denoised.

The flooder takes CPU time itself. So each flood is also sent to a sink, a process that accepts connections, reads
what comes and closes those that end a request, and does nothing else. What the flood costs the server is the
difference between "sink" and "server". In each round, all three take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
import wave
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from server_process import ServerProcess

UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
START = b'{"type": "start", "sample_rate": 16000}'
MASK = bytes(4)  # a mask of zeros leaves the payload as it is
OTHER = "127.0.0.2"
Rows = dict[str, dict[str, float]]


def frame(opcode: int, payload: bytes = b"") -> bytes:
    """Return a whole frame with up to 125 bytes."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + MASK + payload


def flood_connections(port: int) -> None:
    """Open connections and send nothing; open others for those that are closed."""
    held: list[socket.socket] = []
    while True:
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), 1))
        if len(held) > 1_000:
            for connection in held[:500]:
                connection.close()
            del held[:500]


def refill(held: list[socket.socket], count: int, port: int, first: bytes = b"") -> None:
    """Open connections until there are `count`, and send the first bytes on each."""
    while len(held) < count:
        with contextlib.suppress(OSError):
            connection = socket.create_connection(("127.0.0.1", port), 1)
            connection.sendall(first)
            connection.setblocking(False)
            held.append(connection)


def flood_each(port: int, count: int, first: bytes, again: bytes) -> None:
    """Send as much as the server takes on several connections, and read nothing after the first answer."""
    held: list[socket.socket] = []
    while True:
        refill(held, count, port, first)
        for connection in list(held):
            try:
                connection.send(again)
            except BlockingIOError:
                continue
            except OSError:
                held.remove(connection)
                connection.close()
        time.sleep(0.001)


def flood_pings(port: int) -> None:
    """Send pings on four streams."""
    flood_each(port, 4, UPGRADE + b"\r\n", 200 * frame(9, bytes(125)))


def flood_frames(port: int) -> None:
    """Send empty messages on as many streams as one client gets."""
    flood_each(port, 12, UPGRADE + b"\r\n" + frame(1, START), 2_000 * frame(2))


def flood_chunks(port: int) -> None:
    """Send bodies in chunks of one byte on eight connections."""
    head = b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    flood_each(port, 8, head, 5_000 * b"1\r\nx\r\n")


def flood_upgrades(port: int) -> None:
    """Send handshakes that are invalid, and others that are never completed."""
    heads = (UPGRADE, UPGRADE + b"Content-Length: 5\r\n\r\n", UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        held = []
        with contextlib.suppress(OSError):
            for number in range(120):
                connection = socket.create_connection(("127.0.0.1", port), 1)
                connection.sendall(heads[number % len(heads)])
                held.append(connection)
        time.sleep(0.2)
        for connection in held:
            connection.close()


def flood_bodies(port: int) -> None:
    """Send bodies just fast enough on twenty connections."""
    head = b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    held: list[socket.socket] = []
    while True:
        refill(held, 20, port, head)
        for connection in list(held):
            try:
                connection.sendall(bytes(260))
            except OSError:
                held.remove(connection)
        time.sleep(0.2)


def flood_requests(port: int) -> None:
    """Send requests on as many connections as one client gets, without waiting for answers, and read those."""
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    held: list[socket.socket] = []
    while True:
        refill(held, 100, port)
        for connection in list(held):
            try:
                connection.send(20 * request)
                while connection.recv(1 << 16):
                    pass
                held.remove(connection)
            except BlockingIOError:
                continue
            except OSError:
                held.remove(connection)
        time.sleep(0.02)


FLOODS: dict[str, Callable[[int], None]] = {
    "connections": flood_connections,
    "pings": flood_pings,
    "empty frames": flood_frames,
    "tiny chunks": flood_chunks,
    "half upgrades": flood_upgrades,
    "requests": flood_requests,
    "slow bodies": flood_bodies,
}


def second_of_noise() -> bytes:
    """Return a WAV."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        writer.writeframes((1_000 * np.random.default_rng(0).standard_normal(16_000)).astype("<i2").tobytes())
    return file.getvalue()


def ask(port: int, path: str, body: bytes | None = None) -> tuple[float, int]:
    """Do a request from the other address; return its seconds and its status, 0 without an answer."""
    began = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", port, timeout=60, source_address=(OTHER, 0))
    try:
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        answer.read()
        return time.perf_counter() - began, answer.status
    except (OSError, HTTPException):
        return time.perf_counter() - began, 0
    finally:
        connection.close()


class _Sink(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n"):
            self._transport.close()


def run_sink(listener: socket.socket) -> None:
    """Accept connections and read what comes."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(_Sink, sock=listener)
        await server.serve_forever()

    asyncio.run(run())


@contextlib.contextmanager
def running(target: Callable[..., None], *arguments: object) -> Iterator[multiprocessing.Process]:
    """Run a function in a process until the block ends."""
    process = multiprocessing.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def measure(port: int, count: int) -> dict[str, float]:
    """Return what a client notices: times in ms, and how many requests were not answered with 200."""
    body = second_of_noise()
    times: dict[str, list[float]] = {"health": [], "file": []}
    failed = 0
    for _ in range(count):
        for name, path, content in (("health", "/health", None), ("file", "/v1/denoise", body)):
            took_s, status = ask(port, path, content)
            times[name].append(1_000 * took_s)
            failed += status != 200
    found = {f"{name} {q}": float(np.percentile(ms, q)) for name, ms in times.items() for q in (50, 99)}
    return {**found, "failed": failed}


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far."""
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / os.sysconf("SC_CLK_TCK")


def measure_round(server: ServerProcess, sink_port: int, flood: Callable[[int], None], count: int) -> Rows:
    """Return what a client notices without a flood, with one of the sink, and with one of the server."""
    rows = {}
    pid = server.process.pid
    for name, target in (("idle", None), ("sink", sink_port), ("server", server.port)):
        with contextlib.ExitStack() as stack:
            if target is not None:
                stack.enter_context(running(flood, target))
                time.sleep(3)  # until the flood has used up what it may do at once
            began, before_s = time.perf_counter(), cpu_s(pid)
            rows[name] = measure(server.port, count)
            rows[name]["cpu"] = (cpu_s(pid) - before_s) / (time.perf_counter() - began)
            rows[name]["memory"] = resident_mb(pid)
        time.sleep(2)
    return rows


def main() -> None:
    """Measure each flood in rounds; show the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=300, help="requests of each kind in each turn")
    parser.add_argument("--flood", action="append", choices=FLOODS, help="only these")
    parser.add_argument("--json", type=Path, help="write the results of all rounds to this file")
    parser.add_argument("options", nargs="*", help="options of `frcrn-accel serve`, after --")
    arguments = parser.parse_args()
    results: dict[str, list[Rows]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(Path(folder, "log"), *arguments.options) as server,
        socket.create_server(("127.0.0.1", 0), backlog=128) as listener,
        running(run_sink, listener),
    ):
        for name in arguments.rounds * (arguments.flood or list(FLOODS)):
            results[name].append(measure_round(server, listener.getsockname()[1], FLOODS[name], arguments.count))
            print(f"{name}, round {len(results[name])}", file=sys.stderr, flush=True)
        log_bytes = server.log.stat().st_size
    show(results)
    print(f"the log has {log_bytes} bytes")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def show(results: dict[str, list[Rows]]) -> None:
    """Print the medians over the rounds."""
    print(f"{'':>22}  {'health, ms':^19}  {'file of 1 s, ms':^19}")
    print(f"{'':>22}  {'p50':>9} {'p99':>9}  {'p50':>9} {'p99':>9}  {'failed':>6}  CPUs  memory, MB")
    for name, rounds in results.items():
        for label in rounds[0]:
            found = {key: statistics.median(rows[label][key] for rows in rounds) for key in rounds[0][label]}
            times = " ".join(f"{found[key]:9.1f}" for key in ("health 50", "health 99", "file 50", "file 99"))
            failed = sum(rows[label]["failed"] for rows in rounds)
            row = f"{times}  {failed:6.0f}  {found['cpu']:4.2f}  {found['memory']:10.0f}"
            print(f"{f'{name}, {label}':>22}  {row}")


if __name__ == "__main__":
    main()
