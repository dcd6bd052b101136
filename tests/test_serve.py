"""The server, on loopback."""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import urllib.parse
import weakref
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import ClassVar

import av
import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

for _package in ("starlette", "uvicorn", "httpx", "websockets", "prometheus_client", "python_multipart"):
    pytest.importorskip(_package, reason="needs [serve] and httpx: nox -s tests")

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from frcrn_accel import Denoiser, ServeError, Windowing
from frcrn_accel.denoiser import DenoiserOptions, FileReport
from frcrn_accel.models import DEFAULT_MODEL, find_model
from frcrn_accel.serve import TOKENS_VARIABLE, Limits, listen, open_denoiser, read_tokens
from frcrn_accel.serve.metrics import Metrics
from frcrn_accel.serve.result_headers import result_headers
from frcrn_accel.serve.stepping import Stepper
from frcrn_accel.serve.tokens import SUBPROTOCOL, TokenSet
from frcrn_accel.streaming import Stream
from frcrn_accel.testing import FunctionBackend
from hostile import hostile_bodies
from serving import (
    GatedBackend,
    Running,
    answer_to_drops,
    gated_denoiser,
    resident_bytes,
    running,
    sound_file,
    wav,
)
from waiting import until

RNG = np.random.default_rng(0)
NOISE = (3000 * RNG.standard_normal(8_000)).astype(np.int16)
TOKEN = "a-token-of-twenty-some-characters"
COMMAND = [sys.executable, "-c", "from frcrn_accel.cli import main; main()", "serve"]
ORT = DenoiserOptions(backend="ort")
Serve = Callable[..., contextlib.AbstractContextManager[Running]]
HIGH_BAND_QUERIES = ("?high_band=follow", "?high_band=drop")


@pytest.fixture
def backend() -> GatedBackend:
    return GatedBackend(gain=0.5)


@pytest.fixture
def serve(backend: GatedBackend, tmp_path: Path) -> Serve:
    """Return a function that runs a server with an engine that halves its input."""

    @contextlib.contextmanager
    def serve(batch_size: int = 4, tokens: tuple[str, ...] = (), allowed_origins: tuple[str, ...] = (), **limits):
        with (
            gated_denoiser(backend, batch_size) as denoiser,
            running(
                denoiser,
                tmp_path / "temporary",
                Limits(**{"drain_s": 20.0, **limits}),
                tokens=tokens,
                allowed_origins=allowed_origins,
            ) as run,
        ):
            while backend.files_entered.acquire(blocking=False):  # of the warm-up
                pass
            backend.entered.clear()
            yield run
            backend.files_gate.set()
            backend.gate.set()

    return serve


@pytest.fixture
def server(serve: Serve) -> Iterator[Running]:
    with serve() as run:
        yield run


def problem(response: httpx.Response, status: int) -> str:
    """Return the detail of an answer that must be a problem document."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document.keys() == {"type", "title", "status", "detail"}
    assert document["status"] == status
    return document["detail"]


def share_above_8_khz(audio: np.ndarray, rate_hz: int = 48_000) -> float:
    """Return which share of the power is above 8 kHz."""
    power = np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2
    return float(power[len(audio) * 8_200 // rate_hz :].sum() / power.sum())


def post(run: Running, body: bytes | Iterator[bytes], query: str = "", **options) -> httpx.Response:
    return run.client.post(f"/v1/denoise{query}", content=body, **options)


def read(response: httpx.Response) -> tuple[np.ndarray, int]:
    assert response.status_code == 200, response.text
    return soundfile.read(sound_file(response.content), dtype="int16")


def streams(content: bytes) -> tuple[str | None, int]:
    """Return a digest of the picture, and the number of audio tracks."""
    with av.open(io.BytesIO(content)) as film:
        tracks = len(film.streams.audio)
        if not film.streams.video:
            return None, tracks
        packets = [bytes(packet) for packet in film.demux(film.streams.video[0]) if packet.size]
    return hashlib.sha256(b"".join(packets)).hexdigest(), tracks


class TestFiles:
    def test_the_packaged_model_gives_what_the_denoiser_gives(self, tmp_path: Path, noisy_path: Path) -> None:
        pytest.importorskip("onnxruntime")
        with (
            open_denoiser(Metrics(), ORT) as denoiser,
            running(denoiser, tmp_path / "t") as run,
        ):
            report = denoiser.denoise_file(noisy_path, tmp_path / "expected.wav", attenuation_limit_db=20)
            response = post(run, noisy_path.read_bytes(), "?attenuation_limit_db=20")
        assert response.content == (tmp_path / "expected.wav").read_bytes()
        assert response.headers["content-type"] == "audio/wav"
        assert float(response.headers["x-audio-seconds"]) == pytest.approx(report.duration_s)
        seconds, factor = (
            float(response.headers[f"x-{name}"]) for name in ("processing-seconds", "real-time-factor")
        )
        assert factor == pytest.approx(seconds / report.duration_s, abs=2e-6)
        assert (response.headers["x-model"], response.headers["x-backend"]) == ("frcrn-small", "ort")
        assert response.headers["x-clipped-samples"] == str(report.clipped_samples)

    def test_warnings(self, server: Running, backend: GatedBackend) -> None:
        """They name no path, and have a longest length."""
        whole = post(server, wav(NOISE))
        assert "x-warnings" not in whole.headers
        cut = post(server, wav(NOISE)[:-8_000], "?format=ogg")
        lines = urllib.parse.unquote(cut.headers["x-warnings"]).splitlines()
        assert lines[0] == "the file is cut off: about 0.2 s at its end are missing"
        assert lines[1].startswith("the result: FFmpeg does not cut Vorbis of a single page: 96 samples more")
        assert len(lines) == 2
        report = FileReport(Path("a"), Path("b"), 16_000, 1, 1.0, 1.0, 0, warnings=("é\n" * 300,))
        with gated_denoiser(backend) as denoiser:
            text = urllib.parse.unquote(result_headers(denoiser, report)["X-Warnings"])
        assert text == "é\n" * 248 + "é..."

    def test_a_form_gives_the_result_of_the_plain_file(self, server: Running) -> None:
        body = wav(NOISE)
        raw = post(server, body, headers={"Content-Type": "audio/anything"})
        form = server.client.post("/v1/denoise", files={"file": ("talk.wav", body)})
        np.testing.assert_allclose(read(raw)[0], NOISE / 2, atol=1)
        assert form.content == raw.content

    @pytest.mark.parametrize(
        ("suffix", "coding", "film_type", "sound_type"),
        [
            ("mp4", ("-c:v", "mpeg4", "-c:a", "aac"), "video/mp4", "audio/mp4"),
            ("mov", ("-c:v", "mpeg4", "-c:a", "aac"), "video/quicktime", "audio/mp4"),
            ("mkv", ("-c:v", "mpeg4", "-c:a", "flac"), "video/x-matroska", "application/octet-stream"),
            ("webm", ("-c:v", "libvpx", "-c:a", "libopus"), "video/webm", "audio/webm"),
        ],
    )
    def test_a_film_comes_back_as_a_film(
        self, server: Running, tmp_path: Path, suffix: str, coding: tuple[str, ...], film_type: str, sound_type: str
    ) -> None:
        path = tmp_path / f"film.{suffix}"
        (tmp_path / "talk.wav").write_bytes(wav(NOISE))
        picture = ("-f", "lavfi", "-i", "testsrc=size=64x48:rate=10:duration=0.5")
        inputs = (*picture, "-i", tmp_path / "talk.wav", "-i", tmp_path / "talk.wav")
        ffmpeg = (imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *inputs, "-map", "0", "-map", "1", "-map", "2")
        subprocess.run([*ffmpeg, *coding, path], check=True)
        body = path.read_bytes()
        for headers in ({}, {"Accept": "audio/*;q=0.5, video/*"}):
            response = post(server, body, headers=headers)
            assert (response.status_code, response.headers["content-type"]) == (200, film_type), response.text
            assert response.headers["content-disposition"] == f'attachment; filename="denoised.{suffix}"'
            assert streams(response.content) == (streams(body)[0], 2)
        not_a_weight = {"Accept": "audio/*;q=nan, video/*;q=0.5"}
        for query, headers in (("", {"Accept": "audio/*, */*;q=0.5"}), ("", not_a_weight), ("?format=webm", {})):
            response = post(server, body, query, headers=headers)
            expected = "audio/webm" if query else sound_type
            assert (response.status_code, response.headers["content-type"]) == (200, expected), response.text
            assert streams(response.content) == (None, 1)

    @pytest.mark.parametrize(
        ("name", "media_type", "found"),
        [
            ("wav", "audio/wav", ("WAV", "PCM_16")),
            ("flac", "audio/flac", ("FLAC", "PCM_16")),
            ("ogg", "audio/ogg", ("OGG", "VORBIS")),
            ("opus", "audio/ogg", ("OGG", "OPUS")),
            ("mp3", "audio/mpeg", ("MP3", "MPEG_LAYER_III")),
            ("aiff", "audio/aiff", ("AIFF", "PCM_16")),
        ],
    )
    def test_formats(self, server: Running, name: str, media_type: str, found: tuple[str, str]) -> None:
        response = post(server, wav(NOISE, format="FLAC"), f"?format={name}")
        assert response.headers["content-type"] == media_type
        assert f"denoised.{name}" in response.headers["content-disposition"]
        info = soundfile.info(sound_file(response.content))
        assert (info.format, info.subtype) == found

    @pytest.mark.parametrize(
        ("file_format", "media_type"), [("AU", "application/octet-stream"), ("MP3", "audio/mpeg")]
    )
    def test_the_default_format_is_that_of_the_input(
        self, server: Running, file_format: str, media_type: str
    ) -> None:
        response = post(server, wav(NOISE, format=file_format))
        assert response.headers["content-type"] == media_type
        assert soundfile.info(sound_file(response.content)).format == file_format

    def test_channels_rate_and_clipping(self, server: Running, backend: GatedBackend) -> None:
        backend.gain = 20.0
        audio = np.stack([NOISE, NOISE // 50], axis=1)
        response = post(server, wav(audio, 48_000))
        out, rate = read(response)
        assert (rate, out.shape) == (48_000, audio.shape)
        assert out[:, 0].max() == 32_767
        assert 0 < int(response.headers["x-clipped-samples"]) < 8_000

    def test_a_file_without_samples(self, server: Running) -> None:
        response = post(server, wav(NOISE[:0]))
        assert len(read(response)[0]) == 0
        assert "x-real-time-factor" not in response.headers

    def test_the_attenuation_limit(self, server: Running) -> None:
        for limit_db, share in ((0, 1.0), (20, 0.1), (1e9, 0.0)):
            out, _ = read(post(server, wav(NOISE), f"?attenuation_limit_db={limit_db}"))
            np.testing.assert_allclose(out, (share + (1 - share) * 0.5) * NOISE, atol=1)

    def test_the_noise_is_what_was_taken_away(self, server: Running) -> None:
        speech, _ = read(post(server, wav(NOISE), "?attenuation_limit_db=20"))
        taken, _ = read(post(server, wav(NOISE), "?keep=noise&attenuation_limit_db=20"))
        np.testing.assert_allclose(speech.astype(int) + taken, NOISE, atol=1)

    @pytest.mark.parametrize(("query", "suffix"), [("", ".wav"), ("&format=flac", ".flac")])
    def test_speech_and_noise_in_one_answer(self, server: Running, query: str, suffix: str) -> None:
        """They add up to the input, and are what two requests return."""
        response = post(server, wav(NOISE), f"?keep=both&attenuation_limit_db=20{query}")
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/zip"
        assert response.headers["content-disposition"] == 'attachment; filename="denoised.zip"'
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            assert archive.namelist() == [f"denoised{suffix}", f"noise{suffix}"]
            parts = {
                name: soundfile.read(io.BytesIO(archive.read(name)), dtype="int16")[0] for name in archive.namelist()
            }
        found = {Path(name).stem: part for name, part in parts.items()}
        for keep, name in (("speech", "denoised"), ("noise", "noise")):
            alone, _ = read(post(server, wav(NOISE), f"?keep={keep}&attenuation_limit_db=20{query}"))
            np.testing.assert_array_equal(found[name], alone)
        np.testing.assert_array_equal(found["denoised"].astype(int) + found["noise"], NOISE)
        until(server.leftovers, lambda left: not left)

    def test_both_of_a_film(self, server: Running, tmp_path: Path) -> None:
        film = tmp_path / "film.mkv"
        tone = ("-f", "lavfi", "-i", "sine=d=0.5", "-f", "lavfi", "-i", "testsrc=d=0.5:s=64x64")
        subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *tone, "-loglevel", "error", film], check=True)
        detail = problem(post(server, film.read_bytes(), "?keep=both"), 422)
        assert detail == "the result is a film: write its noise to another film, with keep='noise'"
        response = post(server, film.read_bytes(), "?keep=both", headers={"Accept": "audio/*"})
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            names = archive.namelist()
        assert [Path(name).stem for name in names] == ["denoised", "noise"]
        until(server.leftovers, lambda left: not left)

    def test_the_high_band(self, server: Running) -> None:
        """Noise that the engine lets pass at half its level: kept above 8 kHz, or left out."""
        found = {query: read(post(server, wav(NOISE, 48_000), query))[0] for query in ("", *HIGH_BAND_QUERIES)}
        np.testing.assert_array_equal(found[""], found["?high_band=follow"])
        assert share_above_8_khz(found["?high_band=drop"]) < 0.01 < 0.3 < share_above_8_khz(found[""])

    @pytest.mark.parametrize(
        ("query", "detail"),
        [
            ("?format=exe", "format must be one of aiff, flac, m4a, mp3, ogg, opus, wav, webm, got 'exe'"),
            ("?format=", "got ''"),
            ("?attenuation_limit_db=-1", "a number, 0 or more, got '-1'"),
            ("?attenuation_limit_db=nan", "a number, 0 or more, got 'nan'"),
            ("?attenuation_limit_db=lots", "a number, 0 or more, got 'lots'"),
            ("?attenuation_limit_db=1_0", "a number, 0 or more, got '1_0'"),
            ("?attenuation_limit_db=%2010", "a number, 0 or more, got ' 10'"),
            ("?attenuation_limit_db=infinity", "a number, 0 or more, got 'infinity'"),
            ("?attenuation_limit_db=1e999", "a number, 0 or more, got '1e999'"),
            ("?attenuation_limit_db=%D9%A1%D9%A0", r"a number, 0 or more, got '\u0661\u0660'"),
            ("?attenuation_limit_db=", "a number, 0 or more, got ''"),
            ("?limit=3", "unknown option 'limit': the options are format, high_band, keep and attenuation_limit_db"),
            ("?high_band=up", "high_band must be one of follow, drop, got 'up'"),
            ("?keep=all", "keep must be one of speech, noise, both, got 'all'"),
            ("?format=wav&format=wav", "twice"),
        ],
    )
    def test_invalid_queries(self, server: Running, query: str, detail: str) -> None:
        assert detail in problem(post(server, wav(NOISE), query), 400)

    @pytest.mark.parametrize(
        ("options", "status", "detail"),
        [
            (
                {"content": b"hello"},
                422,
                "the file cannot be read as audio: Invalid data found when processing input",
            ),
            ({"content": b""}, 422, "the file cannot be read as audio"),
            ({"content": wav(NOISE, 4_000)}, 422, "sample rate must be 8000 to 192000 Hz, got 4000"),
            ({"content": wav(np.zeros((9, 9)))}, 422, "audio must have up to 8 channels, got 9"),
            ({"content": wav(np.full(9, np.nan), subtype="FLOAT")}, 422, "NaN or infinity"),
            (
                {"content": wav(np.zeros((99, 6))), "params": {"format": "mp3"}},
                422,
                "the result cannot hold 6 channels",
            ),
            ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "without a Content-Encoding"),
            ({"files": {"sound": wav(NOISE)}}, 400, "no file named 'file'"),
            ({"files": [("file", wav(NOISE))] * 2}, 400, "Too many files"),
            ({"data": {"other": "x"}, "files": {"file": wav(NOISE)}}, 400, "Too many fields"),
            ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "boundary"),
            (
                {"content": b"no boundary", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
                400,
                "",
            ),
        ],
    )
    def test_invalid_bodies(self, server: Running, options: dict, status: int, detail: str) -> None:
        found = problem(server.client.post("/v1/denoise", **options), status)
        assert detail in found
        assert str(server.folder) not in found

    def test_an_engine_failure_is_a_500(self, server: Running, backend: GatedBackend) -> None:
        backend.broken = True
        assert problem(post(server, wav(NOISE)), 500) == "internal server error; see the server log"
        assert " 500 " in server.line("POST")
        backend.broken = False
        np.testing.assert_allclose(read(post(server, wav(NOISE)))[0], NOISE / 2, atol=1)

    def test_unknown_paths_and_methods(self, server: Running) -> None:
        assert problem(server.client.get("/v2/denoise"), 404)
        response = server.client.get("/v1/denoise")
        assert problem(response, 405)
        assert response.headers["allow"] == "POST"

    def test_requests_share_calls_of_the_engine(self, serve: Serve, backend: GatedBackend) -> None:
        """Of four files, the three that wait while the first is computed share a call."""
        shapes: list[int] = []
        run_file = backend.function

        def observed(audio: np.ndarray) -> np.ndarray:
            shapes.append(len(audio))
            return run_file(audio)

        backend.function = observed
        audio = [np.roll(NOISE, 100 * i) for i in range(4)]
        with serve(concurrency=4) as run, ThreadPoolExecutor(4) as pool:
            shapes.clear()
            backend.files_gate.clear()
            futures = [pool.submit(post, run, wav(part)) for part in audio]
            assert backend.files_entered.acquire(timeout=60)
            until(lambda: backend.batching.waiting, lambda waiting: waiting == 3)
            backend.files_gate.set()
            for part, future in zip(audio, futures, strict=True):
                np.testing.assert_allclose(read(future.result(60))[0], part / 2, atol=1)
        assert shapes == [1, 3]


class TestLimits:
    def test_long_bodies(self, serve: Serve) -> None:
        with serve(max_body_bytes=20_000) as run:
            assert read(post(run, wav(NOISE)))[1] == 16_000
            detail = "the body is larger than the limit of 0.0190735 MiB"
            assert problem(post(run, wav(np.tile(NOISE, 2))), 413) == detail
            parts = [wav(np.tile(NOISE, 200))[i : i + 5_000] for i in range(0, 100_000, 5_000)]
            assert problem(post(run, iter(parts)), 413) == detail  # without a length
            form = run.client.post("/v1/denoise", files={"file": wav(np.tile(NOISE, 2))})
            assert problem(form, 413) == detail

    def test_long_audio(self, serve: Serve) -> None:
        with serve(max_duration_s=60, max_decoded_bytes=1_000_000) as run:
            assert len(read(post(run, wav(np.zeros(250_000), format="FLAC")))[0]) == 250_000
            minute = wav(np.zeros(61 * 8_000), 8_000, format="FLAC")
            assert "longer than the limit of 31.25 s" in problem(post(run, minute), 413)
            stereo = wav(np.zeros((130_000, 2)), format="FLAC")
            assert "longer than the limit of 7.8125 s" in problem(post(run, stereo), 413)
        with serve(max_duration_s=60) as run:
            assert "longer than the limit of 60 s" in problem(post(run, minute), 413)

    def test_too_many_requests(self, serve: Serve, backend: GatedBackend) -> None:
        """Two are computed, one waits, and the next gets a 429 with Retry-After."""
        with serve(concurrency=2, queue=1) as run, ThreadPoolExecutor(3) as pool:
            backend.files_gate.clear()
            futures = [pool.submit(post, run, wav(NOISE)) for _ in range(3)]
            text = until_metric(run.url, "frcrn_accel_requests_queued 1.0")
            assert "frcrn_accel_requests_computing 2.0" in text
            assert "frcrn_accel_requests_admitted 3.0" in text
            response = post(run, wav(NOISE))
            assert "too many requests" in problem(response, 429)
            assert 1 <= int(response.headers["retry-after"]) <= 60
            backend.files_gate.set()
            assert [future.result(60).status_code for future in futures] == [200] * 3
            assert post(run, wav(NOISE)).status_code == 200

    def test_time(self, serve: Serve, backend: GatedBackend) -> None:
        """One computes for too long, the other waits for too long; then the thread is free again."""
        with serve(concurrency=1, timeout_s=0.3) as run, ThreadPoolExecutor(2) as pool:
            backend.files_gate.clear()
            futures = [pool.submit(post, run, wav(NOISE)) for _ in range(2)]
            waited = next(future for future in iter_done(futures))
            assert "longer than the limit of 0.3 s" in problem(waited, 503)
            assert waited.headers["retry-after"] == "60"
            backend.files_gate.set()
            assert {future.result(60).status_code for future in futures} == {503}
            # On a busy machine, a request may take longer than the limit even then.
            until(lambda: post(run, wav(NOISE)).status_code, lambda status: status == 200)

    def test_slow_senders(self, serve: Serve) -> None:
        """One stops within its body, one sends nothing, one sends byte by byte."""
        with serve(slow_s=0.3) as run:
            with run.raw(run.head(100_000) + bytes(2_000)) as stopped, run.raw() as silent:
                assert b"408 Request Timeout" in received(stopped)
                assert received(silent) == b""
            with run.raw(b"POST /v1/denoise HTTP/1.1\r\nHost: x") as half:
                assert received(half) == b""
            with run.raw(run.head(100_000)) as dripping:
                assert b"408 Request Timeout" in answer_to_drops(dripping, b"x")
            until(run.leftovers, lambda left: left == [])

    def test_slow_takers(self, serve: Serve) -> None:
        # After `stream_idle_s`, the system would close such a connection.
        with serve(slow_s=0.3, min_bytes_per_second=50_000, stream_idle_s=3600.0) as run:
            body = wav(np.tile(NOISE, 1_000))  # more than the buffers of a connection
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(60)
                connection.connect(("127.0.0.1", run.port))
                connection.sendall(run.head(len(body)) + body)
                assert run.line("POST").endswith("the client was too slow")
                assert run.leftovers() == []

                def metrics_meanwhile() -> str:
                    with contextlib.suppress(ConnectionError):
                        connection.recv(16)  # some bytes a second are too slow, too
                    return metrics_text(run.url)

                # That of the request for the metrics is left.
                until(metrics_meanwhile, lambda text: "frcrn_accel_connections 1.0" in text.splitlines())
                with contextlib.suppress(ConnectionError):
                    assert len(received(connection)) < len(body)


def until_metric(url: str, line: str) -> str:
    """Return the metrics of a server once they have this line."""
    return until(lambda: metrics_text(url), lambda text: line in text.splitlines())


def metrics_text(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=60).text


def files_begun(url: str) -> float:
    """Return how many files a server has admitted; those that it has answered count, too."""
    lines = (line.rpartition(" ") for line in metrics_text(url).splitlines())
    values = {name: value for name, _, value in lines}
    answered = 'frcrn_accel_requests_total{path="/v1/denoise",status="200"}'
    return float(values["frcrn_accel_requests_admitted"]) + float(values.get(answered, 0))


def live_streams() -> weakref.WeakSet[Stream]:
    """Return the streams in this process, and keep none."""
    gc.collect()
    return weakref.WeakSet(found for found in gc.get_objects() if type(found) is Stream)


def iter_done(futures: list) -> Iterator[httpx.Response]:
    return (future.result() for future in as_completed(futures, timeout=60))


def received(connection: socket.socket) -> bytes:
    """Receive until the server closes the connection."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def vanish(connection: socket.socket) -> None:
    """Reset the connection, as the system does when a process is killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class TestVanishing:
    """The client disconnects: its files are deleted and its work stops."""

    @pytest.mark.parametrize("form", [False, True])
    def test_in_the_middle_of_its_body(self, server: Running, form: bool) -> None:
        head = server.head(3_000_000)
        body = wav(np.tile(NOISE, 150))[:2_000_000]
        if form:
            head = head.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/form-data; boundary=b\r\n\r\n")
            body = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + body
        connection = server.raw(head + body)
        until_metric(server.url, "frcrn_accel_requests_admitted 1.0")
        vanish(connection)
        assert server.line("POST").endswith("the client left")
        assert server.leftovers() == []
        assert server.service.active == 0

    def test_while_it_is_computed(self, serve: Serve, backend: GatedBackend) -> None:
        body = wav(np.tile(NOISE, 200))  # some hundred windows
        with serve(batch_size=1) as run:
            backend.files_gate.clear()
            connection = run.raw(run.head(len(body)) + body)
            assert backend.files_entered.acquire(timeout=60)
            assert len(run.leftovers()) == 1
            vanish(connection)
            until_metric(run.url, "frcrn_accel_connections 1.0")  # that of the metrics
            # A call of the engine cannot be interrupted, but no other follows.
            backend.files_gate.set()
            assert run.line("POST").endswith("the client left")
            calls = 0
            while backend.files_entered.acquire(blocking=False):
                calls += 1
            assert calls < 100
            assert run.leftovers() == []

    def test_while_it_waits(self, serve: Serve, backend: GatedBackend) -> None:
        with serve(concurrency=1) as run, ThreadPoolExecutor(1) as pool:
            backend.files_gate.clear()
            first = pool.submit(post, run, wav(NOISE))
            assert backend.files_entered.acquire(timeout=60)
            connection = run.raw(run.head(len(wav(NOISE))) + wav(NOISE))
            until_metric(run.url, "frcrn_accel_requests_queued 1.0")
            vanish(connection)
            assert run.line("POST").endswith("the client left")
            assert len(run.leftovers()) == 1
            backend.files_gate.set()
            assert first.result(60).status_code == 200
            assert not backend.files_entered.acquire(blocking=False)

    def test_in_the_middle_of_the_answer(self, server: Running) -> None:
        body = wav(np.tile(NOISE, 1_000))
        connection = server.raw(server.head(len(body)) + body)
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200 OK")
        vanish(connection)
        server.line("POST")
        assert server.leftovers() == []
        assert server.service.active == 0


class TestAccess:
    def test_tokens(self, serve: Serve) -> None:
        with serve(tokens=(TOKEN, "another-token-of-some-length")) as run:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                response = run.client.get("/v1/models", headers=headers)
                assert problem(response, 401) == "missing or unknown token"
                assert response.headers["www-authenticate"] == "Bearer"
            for token in (TOKEN, "another-token-of-some-length"):
                assert post(run, wav(NOISE), headers={"Authorization": f"Bearer {token}"}).status_code == 200
                assert TOKEN not in run.line("POST")
            for path in ("/health", "/ready", "/openapi.json"):
                assert run.client.get(path).status_code == 200
            problem(run.client.get("/metrics"), 401)
            assert run.client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
            assert run.client.get("/openapi.json").json()["components"]["securitySchemes"]

    def test_tokens_of_streams(self, serve: Serve) -> None:
        coded = base64.urlsafe_b64encode(TOKEN.encode()).decode().rstrip("=")
        with serve(tokens=(TOKEN,)) as run:
            for options in (
                {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}},
                {"subprotocols": [SUBPROTOCOL, coded]},
            ):
                with stream(run, **options) as socket_:
                    assert socket_.subprotocol == (SUBPROTOCOL if "subprotocols" in options else None)
            for options in ({}, {"subprotocols": [SUBPROTOCOL, "wrong"]}, {"subprotocols": [SUBPROTOCOL, "!"]}):
                with pytest.raises(InvalidStatus) as caught:
                    stream(run, **options).__enter__()
                assert caught.value.response.status_code == 401
                assert b"missing or unknown token" in caught.value.response.body

    def test_a_token_must_match_completely(self) -> None:
        tokens = TokenSet([TOKEN])
        assert tokens.admits(f"bearer {TOKEN}")
        for text in (None, "", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", TOKEN):
            assert not tokens.admits(text)
        for space in ("\xa0", "\x85", "\u2003", "\v", "\0"):
            assert not tokens.admits(f"Bearer {TOKEN}{space}")
        assert not tokens.admits(None, [SUBPROTOCOL])
        assert TokenSet([]).admits(None)

    def test_sources_of_tokens(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(TOKENS_VARIABLE, raising=False)
        assert read_tokens(None) == ()
        file = tmp_path / "tokens"
        file.write_text(f"# ours\n\n  {TOKEN}\n")
        assert read_tokens(file) == (TOKEN,)
        monkeypatch.setenv(TOKENS_VARIABLE, f"{TOKEN}-2 {TOKEN}-3")
        assert read_tokens(file) == (f"{TOKEN}-2", f"{TOKEN}-3", TOKEN)
        for text, message in (("# none\n", "no token in "), ("short", "at least 16"), (TOKEN + " x", "no space")):
            file.write_text(text)
            with pytest.raises(ServeError, match=message):
                read_tokens(file)
        with pytest.raises(ServeError, match=r"cannot read tokens from '.+': No such file"):
            read_tokens(tmp_path / "none")
        file.write_text(f"\ufeff{TOKEN}\n", encoding="utf-8")  # as editors of Windows write it
        assert read_tokens(file)[-1] == TOKEN
        for text in ("", "  "):
            monkeypatch.setenv(TOKENS_VARIABLE, text)
            with pytest.raises(ServeError, match="no token in FRCRN_ACCEL_TOKENS: unset it"):
                read_tokens(None)

    def test_pages_of_other_origins(self, serve: Serve) -> None:
        with serve(allowed_origins=("https://friend.example",)) as run:
            own = f"http://127.0.0.1:{run.port}"
            for origin, status in (("https://evil.example", 403), ("null", 403), (own, 200)):
                assert post(run, wav(NOISE), headers={"Origin": origin}).status_code == status
            allowed = post(run, wav(NOISE), headers={"Origin": "https://friend.example"})
            assert allowed.headers["access-control-allow-origin"] == "https://friend.example"
            assert "X-Real-Time-Factor" in allowed.headers["access-control-expose-headers"]
            asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
            assert run.client.options("/v1/denoise", headers=asked).status_code == 200
            with stream(run, origin=own), stream(run, origin="https://friend.example"):
                pass
            with pytest.raises(InvalidStatus) as caught:
                stream(run, origin="https://evil.example").__enter__()
            assert caught.value.response.status_code == 403


class TestInformation:
    def test_models(self, server: Running) -> None:
        (model,) = server.client.get("/v1/models").json()["models"]
        assert (model["name"], model["backend"], model["precision"]) == ("frcrn-small", "function", "fp32")
        assert (model["sample_rate_hz"], model["device"], model["streams"]) == (16_000, "numpy", True)
        assert re.fullmatch("[0-9a-f]{64}", model["sha256"])

    def test_metrics(self, server: Running) -> None:
        assert post(server, wav(NOISE)).status_code == 200
        assert post(server, b"x").status_code == 422
        text = server.client.get("/metrics").text
        for line in (
            'frcrn_accel_requests_total{path="/v1/denoise",status="200"} 1.0',
            'frcrn_accel_requests_total{path="/v1/denoise",status="422"} 1.0',
            "frcrn_accel_audio_seconds_total 0.5",
            "frcrn_accel_real_time_factor_count 1.0",
            "frcrn_accel_requests_admitted 0.0",
            "frcrn_accel_streams 0.0",
        ):
            assert line in text.splitlines()

    def test_not_ready_before_the_warm_up(self, backend: GatedBackend, serve: Serve) -> None:
        backend.files_gate.clear()
        with ThreadPoolExecutor(1) as pool:
            context = serve()
            future = pool.submit(context.__enter__)
            assert backend.files_entered.acquire(timeout=60)
            # It listens already, but `running` returns its port only when it is ready.
            backend.files_gate.set()
            run = future.result(60)
            assert run.client.get("/ready").json() == {"status": "ready"}
            assert run.client.get("/health").json() == {"status": "alive"}
            context.__exit__(None, None, None)

    def test_the_page(self, server: Running) -> None:
        page = server.client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert page.headers["cache-control"] == "no-cache"
        scripts = re.findall(r'src="(page/[^"]+\.js)"', page.text)
        assert scripts
        for script in scripts:
            assert server.client.get(f"/{script}").headers["content-type"].startswith("text/javascript")
        again = server.client.get("/", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert problem(server.client.get("/page/none.js"), 404)
        assert problem(server.client.get("/page/%2e%2e/app.py"), 404)

    def test_every_answer_has_safe_headers(self, server: Running) -> None:
        for path in ("/health", "/nothing", "/v1/models"):
            headers = server.client.get(path).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"


@contextlib.contextmanager
def stream(run: Running, **options) -> Iterator[ClientConnection]:
    with connect(f"ws://127.0.0.1:{run.port}/v1/stream", open_timeout=60, **options) as socket_:
        yield socket_


def said(socket_: ClientConnection, message: object) -> dict:
    """Send a message and return the answer."""
    socket_.send(message if isinstance(message, str | bytes) else json.dumps(message))
    return json.loads(socket_.recv(timeout=60))


def closed(socket_: ClientConnection) -> int:
    """Return the close code, which must come next."""
    with pytest.raises(ConnectionClosed) as caught:
        socket_.recv(timeout=60)
    return caught.value.rcvd.code


class TestStreams:
    def test_the_packaged_model_gives_what_a_stream_gives(self, tmp_path: Path, noisy: np.ndarray) -> None:
        """With frames longer than a slice, two streams at the same time, and a change of the limit."""
        pytest.importorskip("onnxruntime")
        audio = (noisy[:12_000] * 32_768).astype("<i2")
        with (
            open_denoiser(Metrics(), ORT) as denoiser,
            running(denoiser, tmp_path / "t") as run,
        ):
            expected = denoiser.stream(16_000, attenuation_limit_db=30)
            parts = [expected.process(audio[:9_000].tobytes())]
            expected.attenuation_limit_db = 6
            parts += [expected.process(audio[9_000:].tobytes())]
            parts += [expected.flush()]
            with stream(run) as one, stream(run) as other:
                start = {"type": "start", "sample_rate": 16_000, "attenuation_limit_db": 30}
                for socket_ in (one, other):
                    started = said(socket_, start)
                    assert started["latency_samples"] == expected.latency_samples
                    assert (started["type"], started["model"]) == ("started", "frcrn-small")
                for socket_ in (one, other):
                    socket_.send(audio[:9_000].tobytes())
                found = {socket_: [socket_.recv(timeout=60)] for socket_ in (one, other)}
                for socket_ in (one, other):
                    assert said(socket_, {"type": "set", "attenuation_limit_db": 6}) == {"type": "set"}
                    socket_.send(audio[9_000:].tobytes())
                    found[socket_].append(socket_.recv(timeout=60))
                    socket_.send('{"type": "flush"}')
                    found[socket_].append(socket_.recv(timeout=60))
                    flushed = json.loads(socket_.recv(timeout=60))
                    assert flushed["type"] == "flushed"
                    assert flushed["audio_s"] == pytest.approx(0.75)
                    assert flushed["real_time_factor"] == pytest.approx(flushed["processing_s"] / 0.75)
                    assert closed(socket_) == 1000
        for parts_found in found.values():
            for one_part, other_part in zip(parts_found, parts, strict=True):
                difference = np.frombuffer(one_part, "<i2").astype(int) - np.frombuffer(other_part, "<i2")
                assert np.abs(difference).max() <= 1

    def test_channels_and_reset(self, server: Running) -> None:
        audio = np.stack([NOISE, NOISE[::-1]], axis=1).astype("<i2")
        with stream(server) as socket_:
            latency = said(socket_, {"type": "start", "sample_rate": 16_000, "channels": 2})["latency_samples"]
            outputs = []
            for _ in range(2):
                socket_.send(audio.tobytes())
                outputs.append(np.frombuffer(socket_.recv(timeout=60), "<i2").reshape(-1, 2))
                assert said(socket_, {"type": "reset"}) == {"type": "reset"}
        np.testing.assert_allclose(outputs[0][latency:], audio[:-latency] / 2, atol=1)
        assert not outputs[0][:latency].any()
        np.testing.assert_array_equal(outputs[1], outputs[0])

    def test_the_high_band(self, server: Running) -> None:
        found = {}
        for mode in (None, "follow", "drop"):
            with stream(server) as socket_:
                chosen = {} if mode is None else {"high_band": mode}
                said(socket_, {"type": "start", "sample_rate": 48_000} | chosen)
                socket_.send(np.tile(NOISE, 3).astype("<i2").tobytes())
                found[mode] = np.frombuffer(socket_.recv(timeout=60), "<i2")
        np.testing.assert_array_equal(found[None], found["follow"])
        assert share_above_8_khz(found["drop"]) < 0.01 < 0.3 < share_above_8_khz(found["follow"])

    def test_streams_share_calls_of_the_engine(self, server: Running, backend: GatedBackend) -> None:
        """Three that wait while a fourth is computed share a call."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(stream(server)) for _ in range(4)]
            for socket_ in sockets:
                said(socket_, {"type": "start", "sample_rate": 16_000})
            backend.gate.clear()
            backend.entered.clear()
            sockets[0].send(NOISE[:320].tobytes())
            assert backend.entered.wait(60)
            for socket_ in sockets[1:]:
                socket_.send(NOISE[:320].tobytes())
            until_metric(server.url, "frcrn_accel_streams_waiting 4.0")
            backend.gate.set()
            assert [len(socket_.recv(timeout=60)) for socket_ in sockets] == [640] * 4
        text = until_metric(server.url, 'frcrn_accel_stream_batch_size_bucket{le="3.0"} 2.0')
        assert 'frcrn_accel_stream_batch_size_bucket{le="1.0"} 1.0' in text
        assert 'frcrn_accel_stream_batch_size_bucket{le="2.0"} 1.0' in text

    @pytest.mark.parametrize(
        ("message", "detail"),
        [
            (b"\0\0", "the first message must be"),
            ("hello", "must be JSON"),
            ("[" * 100_000, "must be JSON"),
            ("[]", "must be an object"),
            ('{"type": "set"}', 'a "type" out of start'),
            ('{"type": ["start"]}', 'a "type" out of start'),
            ('{"type": "start"}', "must have sample_rate"),
            ('{"type": "start", "sample_rate": null}', "must have sample_rate"),
            ('{"type": "start", "sample_rate": 16000.5}', "sample_rate must be a whole number"),
            ('{"type": "start", "sample_rate": true}', "sample_rate must be a whole number"),
            ('{"type": "start", "sample_rate": 7000}', "8000 to 192000 Hz, got 7000"),
            ('{"type": "start", "sample_rate": 1e999}', "sample_rate must be a whole number"),
            ('{"type": "start", "sample_rate": 16000, "channels": 9}', "channels must be 1 to 8, got 9"),
            ('{"type": "start", "sample_rate": 16000, "gain": 1}', "no field 'gain'"),
            ('{"type": "start", "sample_rate": 16000, "high_band": "up"}', "one of follow, drop, got 'up'"),
            ('{"type": "start", "sample_rate": 16000, "high_band": true}', "high_band must be"),
            ('{"type": "start", "sample_rate": 16000, "lookahead_s": 0.01}', "a multiple of 0.04 s"),
            ('{"type": "start", "sample_rate": 16000, "attenuation_limit_db": -1}', "0 or more, got -1"),
            ('{"type": "start", "sample_rate": 16000, "attenuation_limit_db": NaN}', "must be a number"),
            ('{"type": "start", "sample_rate": 16000, "attenuation_limit_db": "10"}', "must be a number"),
            ('{"type": "start", "sample_rate": 16000, "attenuation_limit_db": 1_0}', "must be JSON"),
            ('{"type": "start", "sample_rate": 16000, "sample_rate": 8000}', "the field 'sample_rate' twice"),
        ],
    )
    def test_invalid_first_messages(self, server: Running, message: str | bytes, detail: str) -> None:
        with stream(server) as socket_:
            answer = said(socket_, message)
            assert answer.keys() == {"type", "title", "detail"}
            assert answer["type"] == "error"
            assert detail in answer["detail"]
            assert closed(socket_) == 1008
        server.line("WS /v1/stream 101")
        assert server.service.active == 0

    def test_invalid_later_messages(self, server: Running) -> None:
        for message, detail in (
            (b"\0", "1 bytes are not a whole number"),
            ('{"type": "start", "sample_rate": 16000}', 'a "type" out of set, reset, flush'),
            ('{"type": "reset", "hard": true}', "no field 'hard'"),
        ):
            with stream(server) as socket_:
                said(socket_, {"type": "start", "sample_rate": 16_000})
                assert detail in said(socket_, message)["detail"]
                assert closed(socket_) == 1008

    def test_a_message_that_is_too_long(self, server: Running) -> None:
        with stream(server) as socket_:
            longest = said(socket_, {"type": "start", "sample_rate": 48_000})["max_message_bytes"]
            socket_.send(bytes(longest))
            assert len(socket_.recv(timeout=60)) == longest
            socket_.send(bytes(longest + 2))
            assert closed(socket_) == 1009

    def test_an_empty_stream(self, server: Running) -> None:
        with stream(server) as socket_:
            said(socket_, {"type": "start", "sample_rate": 16_000})
            socket_.send(b"")
            assert socket_.recv(timeout=60) == b""
            socket_.send('{"type": "flush"}')
            assert len(socket_.recv(timeout=60)) == 2 * 2879
            flushed = json.loads(socket_.recv(timeout=60))
            assert flushed == {"type": "flushed", "processing_s": 0.0, "audio_s": 0.0, "real_time_factor": None}

    def test_too_many_streams(self, serve: Serve) -> None:
        with serve(max_streams=1) as run:
            with stream(run) as one, stream(run) as other:
                said(one, {"type": "start", "sample_rate": 16_000})
                assert "try again later" in json.loads(other.recv(timeout=60))["detail"]
                assert closed(other) == 1013
            run.line("too many streams")
            run.line("WS")
            with stream(run) as again:
                assert said(again, {"type": "start", "sample_rate": 16_000})["type"] == "started"

    def test_idle(self, serve: Serve) -> None:
        with serve(stream_idle_s=0.2) as run:
            for started in (False, True):
                with stream(run) as socket_:
                    if started:
                        said(socket_, {"type": "start", "sample_rate": 16_000})
                    assert "no audio for 0.2 s" in json.loads(socket_.recv(timeout=60))["detail"]
                    assert closed(socket_) == 1008

    def test_a_failing_engine(self, server: Running, backend: GatedBackend) -> None:
        with stream(server) as socket_:
            said(socket_, {"type": "start", "sample_rate": 16_000})
            backend.broken = True
            assert "the engine returned NaN" in said(socket_, bytes(640))["detail"]
            assert closed(socket_) == 1011
        backend.broken = False
        with stream(server) as socket_:
            said(socket_, {"type": "start", "sample_rate": 16_000})
            socket_.send(bytes(640))
            assert len(socket_.recv(timeout=60)) == 640

    def test_a_client_that_vanishes(self, server: Running, backend: GatedBackend) -> None:
        before = live_streams()
        with stream(server) as socket_:
            said(socket_, {"type": "start", "sample_rate": 16_000})
            backend.gate.clear()
            backend.entered.clear()
            socket_.send(NOISE.tobytes())
            assert backend.entered.wait(60)
            vanish(socket_.socket)
            backend.gate.set()
        assert "the client left" in server.line("WS")
        assert server.service.active == 0
        until(lambda: live_streams() <= before, bool)


class TestStepper:
    @pytest.fixture
    def stepper(self, backend: GatedBackend) -> Iterator[Stepper]:
        stepper = Stepper()
        yield stepper
        backend.gate.set()
        stepper.close()

    def test_a_closed_channel_leaves_nothing(self, backend: GatedBackend, stepper: Stepper) -> None:
        """Work that waits is cancelled, and the stream is freed."""
        with Denoiser(backend=backend) as denoiser:
            stream = denoiser.stream(16_000)
            found = weakref.ref(stream)
            channel = stepper.add(stream, "group")
            backend.gate.clear()
            running = channel.process(NOISE[None])
            assert backend.entered.wait(60)
            waiting = [channel.process(NOISE[None]), channel.call(Stream.reset)]
            assert stepper.waiting == 1
            channel.close()
            assert all(future.cancelled() for future in [running, *waiting])
            assert stepper.waiting == 0
            backend.gate.set()
            del channel, stream
            until(lambda: (gc.collect(), found() is None)[1], bool)

    def test_an_engine_that_exits_does_not_end_the_thread(self, backend: GatedBackend, stepper: Stepper) -> None:
        with Denoiser(backend=backend) as denoiser:
            channel = stepper.add(denoiser.stream(16_000), "group")
            with pytest.raises(RuntimeError, match=r"the work ended with SystemExit"):
                channel.call(lambda stream: sys.exit()).result(60)
            assert channel.process(NOISE[None]).result(60).shape == (1, len(NOISE))


class TestHostileBodies:
    def test_each_is_refused_or_denoised(self, serve: Serve) -> None:
        """Memory does not grow."""
        bodies = list(hostile_bodies())
        assert len(bodies) >= 300
        statuses = {}
        limits = {"max_duration_s": 60, "max_decoded_bytes": 64 << 20, "max_body_bytes": 1 << 20}
        with serve(**limits) as run:
            levels = []
            for _ in range(2):
                for name, body in bodies:
                    response = post(run, body)
                    statuses[name] = response.status_code
                    if response.status_code == 200:
                        self.check(name, response.content)
                    else:
                        assert response.status_code in (413, 422), (name, response.text)
                        problem(response, response.status_code)
                    run.line("POST")
                    assert run.leftovers() == [], name
                levels.append(resident_bytes())
        assert levels[1] - levels[0] < 16 << 20, levels
        assert statuses["10 minutes of silence"] == 413
        assert statuses["1 samples"] == 200
        assert statuses["8 channels at 192 kHz"] == 200
        assert statuses["HTML"] == 422
        assert statuses["nothing but NaN"] == 422
        assert 50 < sum(status == 200 for status in statuses.values()) < len(bodies) - 100

    def check(self, name: str, content: bytes) -> None:
        audio, rate = soundfile.read(sound_file(content))
        assert 8_000 <= rate <= 192_000, name
        assert np.isfinite(audio).all(), name

    def test_a_body_that_ends_early(self, server: Running) -> None:
        """The body is shorter than its Content-Length."""
        with server.raw(server.head(1_000) + b"RIFF") as connection:
            connection.shutdown(socket.SHUT_WR)
            received(connection)
        assert server.line("POST").endswith("the client left")
        assert server.leftovers() == []

    def test_invalid_http(self, server: Running) -> None:
        for request in (b"hello\r\n\r\n", b"\0" * 100 + b"\r\n\r\n", b"G" * 200_000):
            with server.raw() as connection, contextlib.suppress(ConnectionError):
                connection.sendall(request)
                assert received(connection).startswith(b"HTTP/1.1 400")
        assert server.client.get("/health").status_code == 200


def test_the_end_of_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """Of its start, which the system of a client delays by some 40 ms."""
    with (
        listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class TestProcess:
    """`frcrn-accel serve`, as a process."""

    @pytest.fixture
    def command(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple]:
        pytest.importorskip("onnxruntime")
        (tmp_path / "temporary").mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))

        def start(*options: str, before: tuple[str, ...] = ()) -> tuple[subprocess.Popen[str], str]:
            process = subprocess.Popen(
                [*before, *COMMAND, "--port", "0", "--backend", "ort", *options], stderr=subprocess.PIPE, text=True
            )
            lines = iter(process.stderr.readline, "")
            url = next(match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))
            return process, url

        return start

    def test_a_shutdown_answers_the_requests_in_progress(self, command, tmp_path: Path, noisy: np.ndarray) -> None:
        process, url = command("--concurrency", "1", "--queue", "20")
        body = wav(noisy[:48_000])
        try:
            with ThreadPoolExecutor(6) as pool, httpx.Client(base_url=url, timeout=60) as client:
                until(lambda: client.get("/ready").status_code, lambda status: status == 200)
                futures = [pool.submit(httpx.post, f"{url}/v1/denoise", content=body, timeout=60) for _ in range(6)]
                until(lambda: files_begun(url), lambda count: count == 6)
                with connect(url.replace("http", "ws") + "/v1/stream", open_timeout=60) as live:
                    said(live, {"type": "start", "sample_rate": 16_000})
                    process.send_signal(signal.SIGTERM)
                    assert "shutting down" in json.loads(live.recv(timeout=60))["detail"]
                    assert closed(live) == 1012
                refused = client.get("/ready")
                assert problem(refused, 503) == "the server is shutting down"
                assert problem(client.post("/v1/denoise", content=body), 503).startswith(
                    "the server is shutting down"
                )
                assert [future.result(60).status_code for future in futures] == [200] * 6
            rest = process.communicate(timeout=60)[1]
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0, rest
        assert rest.count("POST /v1/denoise 200") == 6
        assert rest.splitlines()[-1].endswith("shut down")
        assert list((tmp_path / "temporary").glob("*frcrn*")) == []

    def test_a_request_cut_off_by_the_shutdown_is_an_error(self, command, tmp_path: Path, noisy: np.ndarray) -> None:
        process, url = command("--drain-s", "0.2", "--slow-s", "60")
        try:
            port = int(url.rpartition(":")[2])
            with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
                connection.sendall(b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nRIFF")
                until_metric(url, "frcrn_accel_requests_admitted 1.0")
                process.send_signal(signal.SIGTERM)
                rest = process.communicate(timeout=60)[1]
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 2
        assert rest.splitlines()[-1].startswith("frcrn-accel: error: 1 requests or streams were cut off")
        assert "Traceback" not in rest
        assert list((tmp_path / "temporary").glob("*frcrn*")) == []

    @pytest.mark.parametrize(
        ("options", "model", "latency_s"),
        [((), "frcrn-small-stream", 0.12), (("--stream-model", "frcrn-small"), "frcrn-small", 0.32)],
    )
    def test_live_streams_have_a_model_of_their_own(
        self, command, options: tuple[str, ...], model: str, latency_s: float
    ) -> None:
        process, url = command(*options)
        try:
            (entry,) = httpx.get(f"{url}/v1/models", timeout=60).json()["models"]
            assert (entry["name"], entry["stream_model"]) == ("frcrn-small", model)
            with connect(f"{url.replace('http', 'ws')}/v1/stream", open_timeout=60) as live:
                started = said(live, {"type": "start", "sample_rate": 16_000})
            assert started["model"] == model
            assert started["latency_s"] == pytest.approx(latency_s, abs=0.001)
        finally:
            process.terminate()
            process.wait(60)
            process.stderr.close()

    def test_a_full_disk(self, command, tmp_path: Path, noisy: np.ndarray) -> None:
        """With files of at most 100,000 bytes, first the body does not fit, then the result."""
        process, url = command(before=("sh", "-c", 'ulimit -f 200; exec "$@"', "sh"))
        try:
            for body in (wav(noisy[:80_000]), wav(np.zeros(80_000), format="FLAC")):
                response = httpx.post(f"{url}/v1/denoise?format=wav", content=body, timeout=60)
                assert "no room for the file" in problem(response, 507)
            response = httpx.post(f"{url}/v1/denoise", content=wav(noisy[:16_000]), timeout=60)
            assert response.status_code == 200
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 0
        assert list((tmp_path / "temporary").glob("*frcrn*")) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 8000: "),
            (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
            (["--token-file", "none"], "cannot read tokens from 'none'"),
            (["--timeout-s", "0"], "timeout_s must be more than 0"),
            (["--model", "none.onnx", "--port", "0"], "none.onnx"),
            (["--backend", "none", "--port", "0"], "unknown backend 'none'"),
        ],
    )
    def test_options_that_stop_the_start(self, options: list[str], message: str) -> None:
        found = subprocess.run([*COMMAND, *options], capture_output=True, text=True, timeout=60)
        assert found.returncode == 2
        assert found.stderr.splitlines()[-1].startswith("frcrn-accel: error: ")
        assert message in found.stderr.splitlines()[-1]
        assert "Traceback" not in found.stderr

    def test_a_port_that_is_taken(self) -> None:
        with (
            listen("127.0.0.1", 0) as taken,
            pytest.raises(ServeError, match="Address already in use; choose another host or port"),
        ):
            listen("127.0.0.1", taken.getsockname()[1])

    def test_without_the_extra(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        from frcrn_accel import cli

        for name in [name for name in sys.modules if name.startswith("frcrn_accel.serve")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "starlette.applications", None)
        monkeypatch.setattr(sys, "argv", ["frcrn-accel", "serve"])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 2
        assert "pip install 'frcrn-accel[serve]'" in capsys.readouterr().err


def test_the_denoiser_of_the_server_has_the_options_given() -> None:
    pytest.importorskip("onnxruntime")
    options = DenoiserOptions(backend="ort", threads=1, attenuation_limit_db=3)
    with open_denoiser(Metrics(), options) as denoiser:
        assert isinstance(denoiser, Denoiser)
        assert (denoiser.backend, denoiser.threads, denoiser.attenuation_limit_db) == ("ort", 1, 3)
        assert denoiser.model_path == find_model(DEFAULT_MODEL).path
        assert denoiser.options.windowing == Windowing(fixed=True)


class _OneByOne(FunctionBackend):
    """A backend like ONNX Runtime's INT8: one window per call."""

    name: ClassVar[str] = "one-by-one"
    computes_batches: ClassVar[bool] = False


class _Cardlike(FunctionBackend):
    """A backend like TensorRT: it has a batch size of its own and does not use CPU threads."""

    name: ClassVar[str] = "cardlike"
    uses_threads: ClassVar[bool] = False
    batch_size = 4


@pytest.mark.parametrize(("backend", "size"), [(_OneByOne(), 1), (_Cardlike(), 4)])
def test_a_server_starts_with_every_kind_of_backend(backend: FunctionBackend, size: int) -> None:
    """It sets no batch size that a backend refuses."""
    metrics = Metrics()
    windowing = Windowing(window_s=1.0, past_s=0.2, future_s=0.04, fade_s=0.05)
    with open_denoiser(metrics, DenoiserOptions(backend=backend, windowing=windowing)) as denoiser:
        assert denoiser.options.batch_size is None
        denoiser(np.tile(NOISE, 10), 16_000)
    counts = [line for line in metrics.text().decode().splitlines() if "frcrn_accel_batch_size_bucket" in line]
    largest = next(line for line in counts if line.endswith(counts[-1].split()[-1]))
    assert f'le="{size}.0"' in largest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DenoiserOptions(backend=_OneByOne(), batch_size=2), "computes one window per call: leave batch_size out"),
        (DenoiserOptions(backend=_Cardlike(), threads=2), "does not compute on the CPU: leave threads out"),
    ],
)
def test_options_without_effect_are_refused(options: DenoiserOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_denoiser(Metrics(), options)
