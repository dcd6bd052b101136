"""Send mutated requests, messages and files to a server on this machine: `python scripts/fuzz.py --seed 0`.

Nothing may end the server, no answer may be a 5xx but 503 and 507, every connection is answered or closed, memory
stays at its level, and no temporary file is left. `tests/test_serve_fuzz.py` sends a few of each with a fixed seed.
After Ctrl-C or SIGTERM the rest is not sent, and what was found until then is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from itertools import islice, takewhile
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray
from server_process import ServerProcess

START = b'{"type": "start", "sample_rate": 16000}'
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" + KEY
HEADS = (
    b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nOrigin: http://127.0.0.1:8000\r\nAccept: */*\r\n\r\n",
    b"POST /v1/denoise?format=flac HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nRIFF",
    b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nRIFF\r\n0\r\n\r\n",
    b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b'Content-Length: 75\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    b"x\r\n--b--\r\n",
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + b"\r\n",
    b"GET /page/file.js HTTP/1.0\r\nRange: bytes=0-9\r\nIf-None-Match: *\r\nConnection: keep-alive\r\n\r\n",
    b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4;a=b\r\nRIFF\r\n0\r\nX-Trailer: 1\r\n\r\nGET http://localhost/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    b"HEAD / HTTP/1.1\r\nHost: [::1]:8000\r\nX-Forwarded-For: 1.2.3.4, ::1\r\n\r\n",
)
MESSAGES = (
    (1, START),
    (1, b'{"type": "set", "attenuation_limit_db": 12.5}'),
    (1, b'{"type": "reset"}'),
    (1, b'{"type": "flush"}'),
    (2, bytes(64)),
    (2, b"\x01\x00\xff\x7f" * 16),
    (9, b"ping"),
    (10, b"pong"),
    (8, b"\x03\xe8bye"),
    (0, b"more"),
)
PIECES = (
    b"\r\n",
    b"\0",
    b"\xff",
    b" ",
    b":",
    b"%00",
    b"../",
    b"\n",
    b"\t",
    b"9" * 30,
    b"-1",
    b"x" * 3_000,
    b"chunked",
)
FORMATS = ("WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64", "VOC", "NIST")
CONTAINERS = {
    "mp4": "aac",
    "mov": "alac",
    "adts": "aac",
    "webm": "libopus",
    "matroska": "ac3",
    "asf": "wmav2",
    "mpegts": "mp2",
    "flv": "adpcm_swf",
    "avi": "adpcm_ms",
    "wv": "wavpack",
}
REFUSED = range(400, 500)
FINE = (503, 507)


def mutated(rng: np.random.Generator, content: bytes, times: int = 3) -> bytes:
    """Return bytes with some changed, removed, repeated or added."""
    data = bytearray(content)
    for _ in range(rng.integers(1, times + 1)):
        place = int(rng.integers(len(data) + 1))
        length = int(rng.integers(1, 9))
        kind = rng.integers(5)
        if kind == 0:
            data[place : place + 1] = rng.bytes(1)
        elif kind == 1:
            del data[place : place + length]
        elif kind == 2:
            data[place:place] = data[place : place + 4 * length]
        elif kind == 3:
            data[place:place] = PIECES[rng.integers(len(PIECES))]
        else:
            data[place : place + length] = rng.bytes(length)
    return bytes(data)


def framed(rng: np.random.Generator, opcode: int, payload: bytes) -> bytes:
    """Return a frame whose head is wrong now and then."""
    first = 0x80 | opcode if rng.random() < 0.9 else int(rng.integers(256))
    masked = 0x80 if rng.random() < 0.97 else 0
    length = len(payload) if rng.random() < 0.95 else int(rng.integers(1 << 16))
    size = bytes((masked | length,)) if length < 126 else bytes((masked | 126,)) + length.to_bytes(2, "big")
    return bytes((first,)) + size + (bytes(4) if masked else b"") + payload


def requests(rng: np.random.Generator) -> Iterator[bytes]:
    """Yield mutated requests without end."""
    while True:
        yield mutated(rng, HEADS[rng.integers(len(HEADS))])


def conversations(rng: np.random.Generator) -> Iterator[bytes]:
    """Yield handshakes with mutated messages after them, without end."""
    while True:
        content = b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + b"\r\n"
        if rng.random() < 0.8:
            content += b"\x81" + bytes((0x80 | len(START),)) + bytes(4) + START
        for _ in range(rng.integers(1, 8)):
            opcode, payload = MESSAGES[rng.integers(len(MESSAGES))]
            content += framed(rng, opcode, mutated(rng, payload)[:60_000] if rng.random() < 0.7 else payload)
        yield content


def files(rng: np.random.Generator) -> Iterator[bytes]:
    """Yield mutated audio files of all formats, rates and numbers of channels, without end."""
    while True:
        rate = int(rng.choice((8_000, 16_000, 44_100, 48_000)))
        audio = 0.1 * rng.standard_normal((int(rng.integers(1, 2_000)), int(rng.integers(1, 3))))
        form = (*FORMATS, *CONTAINERS)[rng.integers(len(FORMATS) + len(CONTAINERS))]
        content = contained(audio, form) if form in CONTAINERS else written(audio, form, rate)
        for _ in range(10):
            yield mutated(rng, content, 6)


def written(audio: NDArray[np.float64], form: str, rate: int) -> bytes:
    """Return audio `(samples, channels)` as a file of libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format=form)
    return file.getvalue()


def contained(audio: NDArray[np.float64], form: str) -> bytes:
    """Return audio `(samples, channels)` as a file of FFmpeg, at a rate that its encoder takes."""
    rate = 48_000 if form == "webm" else 44_100
    layout = "stereo" if audio.shape[1] == 2 else "mono"
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(CONTAINERS[form], rate=rate, layout=layout, bit_rate=64_000)
        assert isinstance(stream, av.AudioStream)
        samples = np.ascontiguousarray(audio.T, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(stream.format, layout, rate, stream.frame_size or None)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


def exchange(port: int, content: bytes, longest_s: float) -> bytes:
    """Send something, then close our half; return what comes until the server closes the connection.

    Raises:
        TimeoutError: It does not.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", port), longest_s) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            answer += part
    return answer


def statuses(answer: bytes) -> list[int]:
    """Return the statuses in an answer."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def check(answer: bytes, content: bytes) -> list[int]:
    """Return the statuses of an answer.

    Raises:
        AssertionError: One is a 5xx that it must not be.
    """
    found = statuses(answer)
    bad = [status for status in found if status >= 500 and status not in FINE]
    assert not bad, (bad, content)
    return found


def fuzz(port: int, contents: Iterable[bytes], longest_s: float = 60.0) -> Counter[int]:
    """Send some, one after the other; count the statuses of the answers."""
    seen: Counter[int] = Counter()
    for content in contents:
        seen.update(check(exchange(port, content, longest_s), content) or [0])
    return seen


def fuzz_files(port: int, contents: Iterable[bytes]) -> Counter[int]:
    """Post some files, two at a time; count the statuses.

    Raises:
        AssertionError: Some statuses are none that they may be: these, with the files.
    """
    seen: Counter[int] = Counter()
    wrong: list[tuple[int, bytes]] = []
    rest = iter(contents)
    taking = threading.Lock()

    def post_files() -> None:
        while True:
            with taking:
                content = next(rest, None)
            if content is None:
                return
            status = post(port, content)
            with taking:
                seen[status] += 1
                if status not in (200, *REFUSED, *FINE):
                    wrong.append((status, content))

    with ThreadPoolExecutor(2) as threads:
        for posting in [threads.submit(post_files) for _ in range(2)]:
            posting.result()
    assert not wrong, wrong
    return seen


def post(port: int, content: bytes) -> int:
    """Post a file; return the status."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/v1/denoise", content)
    status = connection.getresponse().status
    connection.close()
    return status


def main() -> None:
    """Start a server, fuzz it, and show what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    for name, count in (("requests", 20_000), ("messages", 20_000), ("files", 50_000)):
        parser.add_argument(f"--{name}", type=int, default=count)
    arguments = parser.parse_args()
    is_interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: is_interrupted.set())
    # One thread for the engine: signals are short, and each file waits for it.
    limits = ("--threads", "1", "--slow-s", "0.5", "--stream-idle-s", "0.5", "--client-frames-per-s", "1e6")
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, "temporary")
        temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(temporary)}
        with ServerProcess(Path(folder, "log"), *limits, environment=environment) as server:
            kinds: tuple[tuple[str, Callable[..., Counter[int]], Iterator[bytes]], ...] = (
                ("requests", fuzz, requests(np.random.default_rng(arguments.seed))),
                ("messages", fuzz, conversations(np.random.default_rng(arguments.seed))),
                ("files", fuzz_files, files(np.random.default_rng(arguments.seed))),
            )
            for name, send, contents in kinds:
                began = time.perf_counter()
                some = islice(contents, getattr(arguments, name))
                seen = send(server.port, takewhile(lambda _: not is_interrupted.is_set(), some))
                resident = server.metric("process_resident_memory_bytes") / (1 << 20)
                died = server.metric("frcrn_accel_file_processes_died_total")
                took_s = time.perf_counter() - began
                print(f"{name}: {dict(sorted(seen.items()))}, {took_s:.0f} s, {resident:.0f} MB, {died:.0f} died")
                assert server.process.poll() is None
            left = leftovers(temporary)
            assert not left, left
            said = server.end()
            assert "Traceback" not in said, said[-5_000:]


def leftovers(folder: Path, longest_s: float = 10.0) -> list[Path]:
    """Return what the server has left in its temporary folder, once the last requests have ended."""
    began = time.perf_counter()
    while True:
        left = [path for path in folder.rglob("*") if "frcrn" in path.name]
        if not left or time.perf_counter() - began > longest_s:
            return left
        time.sleep(0.1)


if __name__ == "__main__":
    main()
