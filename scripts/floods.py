"""Flood a server on this machine, and measure what another client notices: `python scripts/floods.py [--seconds 10]`.

Each flood comes from one address, 127.0.0.1, in a process of its own. The other client has the address 127.0.0.2 (on
Linux, all of 127.0.0.0/8 is this machine) and asks for `/health`, and for a second of audio to be denoised.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np
from fuzz import wait_until_ready

UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
START = b'{"type": "start", "sample_rate": 16000}'
MASK = bytes(4)  # a mask of zeros leaves the payload as it is
OTHER = "127.0.0.2"


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


def flood_each(port: int, count: int, first: bytes, again: bytes) -> None:
    """Send as much as the server takes on several connections, and read nothing after the first answer."""
    held: list[socket.socket] = []
    while True:
        while len(held) < count:
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port), 1)
                connection.sendall(first)
                connection.setblocking(False)
                held.append(connection)
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
        while len(held) < 20:
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port), 1)
                connection.sendall(head)
                held.append(connection)
        for connection in list(held):
            try:
                connection.sendall(bytes(260))
            except OSError:
                held.remove(connection)
        time.sleep(0.2)


FLOODS: dict[str, Callable[[int], None]] = {
    "connections": flood_connections,
    "pings": flood_pings,
    "empty frames": flood_frames,
    "tiny chunks": flood_chunks,
    "half upgrades": flood_upgrades,
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


def measure(port: int, seconds: float) -> dict[str, float]:
    """Return what a client notices: times in ms, and how many requests were not answered with 200."""
    body = second_of_noise()
    times: dict[str, list[float]] = {"health": [], "file": []}
    failed = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for name, path, content in (("health", "/health", None), ("file", "/v1/denoise", body)):
            for _ in range(10 if content is None else 1):
                took_s, status = ask(port, path, content)
                times[name].append(1_000 * took_s)
                failed += status != 200
    found = {f"{name} {q}": float(np.percentile(ms, q)) for name, ms in times.items() for q in (50, 99)}
    return {**found, "failed": failed}


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def main() -> None:
    """Measure without a flood and with each, in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="length of each flood")
    parser.add_argument("--flood", action="append", choices=FLOODS, help="only these")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("options", nargs="*", help="options of `frcrn-accel serve`, after --")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "frcrn_accel", "serve", "--port", "0", "--drain-s", "5", *arguments.options]
    with tempfile.NamedTemporaryFile() as log:
        server = subprocess.Popen(command, stderr=log)
        try:
            port = wait_until_ready(Path(log.name))
            results = {}
            print(f"{'':>14}  {'health, ms':^19}  {'file of 1 s, ms':^19}")
            print(f"{'':>14}  {'p50':>9} {'p99':>9}  {'p50':>9} {'p99':>9}  {'failed':>6}  memory, MB")
            for name in arguments.flood or FLOODS:
                for label in ("before", name):
                    flood = multiprocessing.Process(target=FLOODS[name], args=(port,), daemon=True)
                    if label == name:
                        flood.start()
                        time.sleep(1)
                    found = measure(port, arguments.seconds)
                    if label == name:
                        flood.kill()
                        flood.join()
                    found["memory"] = resident_mb(server.pid)
                    results[f"{name}, {'during' if label == name else label}"] = found
                    row = " ".join(f"{found[key]:9.1f}" for key in ("health 50", "health 99", "file 50", "file 99"))
                    print(f"{label:>14}  {row}  {found['failed']:6.0f}  {found['memory']:10.0f}", flush=True)
                time.sleep(2)
        finally:
            server.terminate()
            server.wait()
        print(f"the log has {Path(log.name).stat().st_size} bytes")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
