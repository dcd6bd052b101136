"""Streams in Pipecat and LiveKit, with the real packages, and at a sound card, without one."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import math
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from delaying import DelayingBackend
from frcrn_accel import AudioError, Denoiser, MissingExtraError, SoundCardError, cli
from frcrn_accel.adapters import sound_card
from frcrn_accel.adapters.background import BackgroundStream
from frcrn_accel.adapters.feed import (
    FLOOR_DB,
    Feed,
    LevelMeter,
    LiveStatus,
    aligned,
    denoise_live,
    first_samples,
)
from frcrn_accel.adapters.playout import DelayLine, Playout
from frcrn_accel.adapters.recovery import Recovery
from frcrn_accel.adapters.switched import SwitchedStream
from frcrn_accel.backends import StepSession
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.models import LIVE_MODEL, ModelFile
from frcrn_accel.pcm import from_pcm, to_pcm
from frcrn_accel.streaming import Stream

RATE = 16_000
FRAME = 160  # 10 ms
RAMP = 320  # 20 ms


@pytest.fixture
def backend() -> DelayingBackend:
    return DelayingBackend(0.5)


@pytest.fixture
def half(backend: DelayingBackend) -> Iterator[Denoiser]:
    with Denoiser(backend=backend) as denoiser:
        yield denoiser
        backend.gate.set()


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    """The packaged model on ONNX Runtime, for streams."""
    pytest.importorskip("onnxruntime")
    with Denoiser(backend="ort", threads=1) as denoiser:
        yield denoiser


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20_000, 20_000, (channels, samples)).astype(np.int16)


def frames(audio: np.ndarray, size: int = FRAME) -> list[np.ndarray]:
    return [audio[:, first : first + size] for first in range(0, audio.shape[1], size)]


def delayed(audio: np.ndarray, samples: int) -> np.ndarray:
    """Delay audio by a number of samples."""
    return np.pad(audio, ((0, 0), (samples, 0)))[:, : audio.shape[1]]


def assert_half(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found - expected / 2).max() <= 1


class Ticking(DelayingBackend):
    """A backend with a clock of its own, which each step moves on."""

    time_s = 0.0
    step_s = 0.0

    def load_step(self, model: ModelFile, threads: int, lookahead: int = 7) -> StepSession:
        step = super().load_step(model, threads, lookahead)
        compute = step.run

        def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            self.time_s += self.step_s
            return compute(feeds)

        step.run = run
        return step


class TestPlayout:
    def test_late_samples_are_replaced_and_what_follows_is_in_place(self) -> None:
        playout = Playout(1, hold=2, drop=1)
        playout.put(np.array([[0, 3, 4]], np.int16))
        taken = [playout.take(np.array([[-1, -2, -3]], np.int16)), playout.take(np.array([[-4, -5, -6]], np.int16))]
        assert playout.late_samples == 2
        playout.put(np.array([[5, 6, 7, 8]], np.int16))  # 5 and 6 are late
        taken.append(playout.take(np.array([[-7, -8]], np.int16)))
        assert np.concatenate(taken, axis=1).tolist() == [[-1, -2, 3, 4, -5, -6, 7, 8]]
        assert playout.late_samples == 2

    def test_a_delay_line(self) -> None:
        line = DelayLine(2, 3)
        audio = noise(20, 2)
        out = np.concatenate(
            [line.exchange(audio[:, :1]), line.exchange(audio[:, 1:1]), line.exchange(audio[:, 1:])], 1
        )
        np.testing.assert_array_equal(out, delayed(audio, 3))


class TestSwitched:
    def test_turned_off_and_on_nothing_jumps(self, half: Denoiser) -> None:
        stream = half.stream(RATE)
        switched, late = SwitchedStream(stream), stream.latency_samples
        audio = noise(5 * RATE)
        expected = delayed(audio, late)
        parts = []
        for number, frame in enumerate(frames(audio, 1000)):
            switched.enabled = not 20 <= number < 40
            parts.append(switched.process(frame))
        found = np.concatenate(parts, axis=1)
        assert_half(found[:, :20_000], expected[:, :20_000])
        # Off, and on again until the stream has bridged its latency; a ramp after each change.
        dry = slice(20_000 + RAMP, 40_000 + late)
        np.testing.assert_array_equal(found[:, dry], expected[:, dry])
        assert_half(found[:, 40_000 + late + RAMP :], expected[:, 40_000 + late + RAMP :])

    def test_off_nothing_is_computed(self, half: Denoiser, backend: DelayingBackend) -> None:
        switched = SwitchedStream(half.stream(RATE))
        switched.enabled = False
        switched.process(noise(RATE))
        assert not backend.entered.is_set()

    @pytest.mark.parametrize("error", [None, KeyError("x"), MemoryError(), SystemExit(3), KeyboardInterrupt()])
    def test_a_failure_is_logged_once_and_it_comes_back_by_itself(self, half, backend, caplog, error) -> None:
        """From 1 s to 3.5 s the engine fails. Retries are due 1 s and 3 s after the first failure."""
        switched = SwitchedStream(half.stream(RATE))
        audio = noise(16 * RATE)
        late = switched.stream.latency_samples
        expected = delayed(audio, late)
        parts = []

        def run() -> None:
            for number, frame in enumerate(frames(audio)):
                backend.broken = error is None and 100 <= number < 350
                backend.error = error if 100 <= number < 350 else None
                parts.append(switched.process(frame))
                if number == 360:
                    assert switched.enabled
                    assert not switched.is_denoising

        # In a worker, as in the adapters: there a KeyboardInterrupt does not come from Ctrl-C.
        with ThreadPoolExecutor(1) as worker:
            worker.submit(run).result()
        assert switched.is_denoising
        found = np.concatenate(parts, axis=1)
        assert_half(found[:, :RATE], expected[:, :RATE])
        dry = slice(RATE + 2 * RAMP, 4 * RATE)
        np.testing.assert_array_equal(found[:, dry], expected[:, dry])
        back = 4 * RATE + late + 3 * RAMP
        assert_half(found[:, back:], expected[:, back:])
        assert [record.message for record in caplog.records] == [
            "the engine failed: the audio is returned unprocessed until a retry succeeds",
            "the audio is denoised again",
        ]

    def test_ctrl_c_in_the_main_thread_is_not_swallowed(self, half, backend) -> None:
        switched = SwitchedStream(half.stream(RATE))
        backend.error = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            switched.process(noise(RATE))

    def test_waits_double_up_to_half_a_minute(self) -> None:
        recovery = Recovery(100)
        waits = []
        for _ in range(7):
            recovery.fail("no engine", ValueError("x"))
            waits.append(0)
            while not recovery.is_due:
                recovery.advance(100, denoising=False)
                waits[-1] += 1
        assert waits == [1, 2, 4, 8, 16, 30, 30]
        recovery.advance(1000, denoising=True)
        recovery.fail("no engine", ValueError("x"))
        recovery.advance(100, denoising=False)
        assert recovery.is_due

    def test_a_chunk_with_other_channels_changes_nothing(self, half) -> None:
        switched, audio = SwitchedStream(half.stream(RATE)), noise(RATE)
        found = [switched.process(audio[:, :8000])]
        with pytest.raises(AudioError, match=r"the stream has 1 channel\(s\), the chunk has 2"):
            switched.process(noise(FRAME, 2))
        found.append(switched.process(audio[:, 8000:]))
        assert_half(np.concatenate(found, axis=1), delayed(audio, switched.stream.latency_samples))


class TestBackground:
    @pytest.fixture
    def background(self, half: Denoiser) -> Iterator[BackgroundStream]:
        background = BackgroundStream(lambda rate, channels: half.stream(rate, channels=channels))
        yield background
        background.close()

    def send(self, background: BackgroundStream, audio: np.ndarray, *, wait: bool = True) -> np.ndarray:
        parts = []
        for frame in frames(audio):
            parts.append(background.process(frame, RATE))
            if wait:
                background.wait()
        return np.concatenate(parts, axis=1)

    @pytest.mark.parametrize("channels", [1, 2])
    def test_it_comes_out_denoised_after_the_latency(self, background: BackgroundStream, channels: int) -> None:
        background.open(RATE, channels)
        assert background.latency_s == pytest.approx(0.18 - 1 / RATE + 0.04)
        late = round(background.latency_s * RATE)
        audio = noise(RATE, channels)
        assert_half(self.send(background, audio), delayed(audio, late))
        assert background.late_s == 0

    @pytest.mark.parametrize("frame_ms", [10, 50, 60, 100])
    def test_longer_chunks_are_denoised_whole(self, background: BackgroundStream, frame_ms: int) -> None:
        background.open(RATE, 1)
        audio = noise(2 * RATE)
        parts = []
        for frame in frames(audio, frame_ms * 16):
            parts.append(background.process(frame, RATE))
            background.wait()
        late = round(background.latency_s * RATE)
        assert background.latency_s == pytest.approx(0.18 - 1 / RATE + 0.03 + frame_ms / 1000)
        assert_half(np.concatenate(parts, axis=1), delayed(audio, late))
        assert background.late_s == 0

    def test_a_slow_engine_does_not_block_the_caller(self, background, backend) -> None:
        """While the engine is blocked, the unprocessed signal comes out in its place; then denoising continues."""
        background.open(RATE, 1)
        late = round(background.latency_s * RATE)
        audio = noise(3 * RATE)
        expected = delayed(audio, late)
        found = self.send(background, audio[:, :RATE])
        backend.gate.clear()
        slow = self.send(background, audio[:, RATE : RATE + 8000], wait=False)
        backend.gate.set()
        background.wait()
        after = self.send(background, audio[:, RATE + 8000 :])
        assert_half(found, expected[:, :RATE])
        headroom = round(0.04 * RATE)
        assert_half(slow[:, :headroom], expected[:, RATE : RATE + headroom])
        # A step that was not full may have come with the last samples before.
        dry = headroom + 320 + RAMP
        np.testing.assert_array_equal(slow[:, dry:], expected[:, RATE + dry : RATE + 8000])
        assert_half(after[:, RAMP:], expected[:, RATE + 8000 + RAMP :])
        assert background.late_s == pytest.approx((8000 - headroom) / RATE, abs=0.02)

    def test_more_than_a_second_behind_the_backlog_is_dropped(self, background, backend, caplog) -> None:
        background.open(RATE, 1)
        late = round(background.latency_s * RATE)
        audio = noise(5 * RATE)
        expected = delayed(audio, late)
        backend.gate.clear()
        self.send(background, audio[:, : 2 * RATE], wait=False)
        assert "more than 1 s behind: dropping the backlog" in caplog.text
        backend.gate.set()
        background.wait()
        found = self.send(background, audio[:, 2 * RATE :])
        assert_half(found[:, RATE:], expected[:, 3 * RATE :])

    def test_an_engine_that_is_always_too_slow_is_reported_once(self, background, backend, caplog) -> None:
        background.open(RATE, 1)
        second = noise(RATE)
        for _ in range(2):
            backend.gate.clear()
            for _ in range(5):
                self.send(background, second, wait=False)
            backend.gate.set()
            background.wait()
            for _ in range(11):  # after 10 s without a drop, the next one is news
                self.send(background, second)
        assert caplog.text.count("dropping the backlog") == 2

    def test_another_rate_is_another_signal(self, half) -> None:
        gate = threading.Event()

        def open_stream(rate: int, channels: int) -> Stream:
            assert rate == RATE or gate.wait(60)
            return half.stream(rate, channels=channels)

        background = BackgroundStream(open_stream)
        background.open(RATE, 1)
        spectrum = np.fft.rfft(noise(RATE) / 10)
        spectrum[:, 7_000:] = 0  # resamplers differ in how they end at 8 kHz
        before = np.rint(np.fft.irfft(spectrum)).astype(np.int16)
        self.send(background, before)
        # The worker opens the stream for the other rate; until then the signal comes out unprocessed.
        loud = np.full((2, 480), 30_000, np.int16)
        late = round(background.latency_s * 48_000)
        found = np.concatenate([background.process(loud, 48_000) for _ in range(300)], axis=1)
        assert (found[:, late:] == 30_000).all()
        # First what was still inside, at the other rate.
        inside = before[0, RATE - round(late / 3) :]
        resampled = soxr.resample(inside / 32768, RATE, 48_000) * 32768
        same = slice(2 * 3 * RAMP, late - 3 * RAMP)
        assert np.abs(found[:, same] - resampled[same]).max() <= 2
        assert background.latency_s is None
        gate.set()
        background.wait()
        # What is constant would be taken for an offset: a tone of four periods in each chunk.
        tone = np.tile(np.rint(20_000 * np.sin(2 * np.pi * np.arange(480) / 120)), (2, 1)).astype(np.int16)
        for _ in range(200):
            out = background.process(tone, 48_000)
            assert out.shape == (2, 480)
            background.wait()
        assert background.stream.sample_rate_hz == 48_000
        assert np.abs(out).max() == pytest.approx(10_000, abs=20)
        background.close()

    def test_audio_of_an_invalid_rate_comes_out_as_it_came(self, background: BackgroundStream, caplog) -> None:
        audio = noise(4_000)
        background.open(RATE, 1)
        late = math.ceil(background.latency_s * 4_000)
        parts = []
        for frame in frames(audio, 40):
            parts.append(background.process(frame, 4_000))
            background.wait()
        found = np.concatenate(parts, axis=1)
        np.testing.assert_array_equal(found, delayed(audio, late))
        assert caplog.text.count("no stream for this audio") == 1
        assert background.process(noise(160), RATE).shape == (1, 160)

    def test_it_needs_no_opening(self, background: BackgroundStream) -> None:
        """The worker opens a stream for the first samples, as it does for another rate."""
        audio = noise(3 * RATE)
        found = self.send(background, audio)
        late = round(background.latency_s * RATE)
        assert_half(found[:, RATE:], delayed(audio, late)[:, RATE:])

    @pytest.mark.parametrize("rate", [0, -5, 999, 10**9, RATE + 0.5, math.nan, None])
    def test_a_rate_that_is_none_changes_nothing(self, background: BackgroundStream, rate: float | None) -> None:
        background.open(RATE, 1)
        audio = noise(2 * RATE)
        before = self.send(background, audio[:, :RATE])
        with pytest.raises(AudioError, match="sample rate must be"):
            background.process(audio[:, :FRAME], rate)
        found = np.concatenate([before, self.send(background, audio[:, RATE:])], axis=1)
        assert_half(found, delayed(audio, round(background.latency_s * RATE)))

    def test_formats_that_change_with_every_chunk(self, background: BackgroundStream) -> None:
        """Rate and channels change faster than a stream can be opened, in chunks of any length: nothing is lost."""
        rng, rates = np.random.default_rng(0), (8_000, 8_001, 12_000, 16_000, 44_056, 48_000, 96_000, 192_000)
        for _ in range(300):
            rate, channels, samples = int(rng.choice(rates)), int(rng.integers(1, 4)), int(rng.integers(0, 2_000))
            chunk = rng.integers(-20_000, 20_000, (channels, samples)).astype(np.int16)
            assert background.process(chunk, rate).shape == chunk.shape
        audio = noise(3 * RATE)
        found = self.send(background, audio)
        assert_half(found[:, 2 * RATE :], delayed(audio, round(background.latency_s * RATE))[:, 2 * RATE :])

    def test_a_new_signal_has_nothing_of_the_one_before(self, background: BackgroundStream) -> None:
        background.open(RATE, 1)
        late = round(background.latency_s * RATE)
        self.send(background, noise(RATE))
        background.restart()
        audio = noise(RATE, seed=1)
        found = self.send(background, audio)
        assert not found[:, RAMP:late].any()  # after a ramp
        assert_half(found[:, late + RAMP :], delayed(audio, late)[:, late + RAMP :])

    def test_an_engine_that_fails(self, background, backend, caplog) -> None:
        background.open(RATE, 1)
        audio = noise(RATE)
        backend.broken = True
        found = self.send(background, audio)
        expected_again = delayed(np.tile(audio, 3), round(background.latency_s * RATE))
        np.testing.assert_array_equal(found, expected_again[:, :RATE])
        assert caplog.text.count("the engine failed: the audio is returned unprocessed until a retry succeeds") == 1
        backend.broken = False
        found = self.send(background, np.tile(audio, 2))  # by itself, 1 s later
        assert_half(found[:, RATE:], expected_again[:, 2 * RATE :])

    def test_its_life(self, background: BackgroundStream, half: Denoiser) -> None:
        background.open(RATE, 1)
        background.close()
        background.close()
        with pytest.raises(RuntimeError, match="closed: create a new one"):
            background.process(noise(FRAME), RATE)
        for headroom_s in (-1.0, math.inf, math.nan):
            with pytest.raises(ValueError, match="headroom_s must be 0 or more and finite"):
                BackgroundStream(half.stream, headroom_s=headroom_s)


async def ticks_while(entered: threading.Event, waiting: asyncio.Future | None) -> int:
    """Count how often another task runs while the engine is blocked."""
    count = 0

    async def beat() -> None:
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(beat())
    assert await asyncio.to_thread(entered.wait, 60)
    while count < 100:
        await asyncio.sleep(0)
    assert waiting is None or not waiting.done()
    task.cancel()
    return count


class TestPipecat:
    @pytest.fixture
    def make(self):
        pytest.importorskip("pipecat", reason="needs the [pipecat] extra")
        with warnings.catch_warnings(action="ignore"):  # of its own modules, about themselves
            importlib.import_module("pipecat.tests.utils")
            importlib.import_module("pipecat.transports.base_input")
        from frcrn_accel.adapters.pipecat import FrcrnFilter

        return FrcrnFilter

    @pytest.mark.parametrize("rate", [16_000, 24_000])
    def test_it_gives_what_the_stream_gives(self, make, denoiser, noisy, rate: int) -> None:
        """Bit for bit, in chunks of 20 ms."""
        pcm = (noisy[: 2 * RATE] * 32767).astype(np.int16).tobytes()
        chunks = [pcm[first : first + rate // 25] for first in range(0, len(pcm), rate // 25)]

        async def run() -> list[bytes]:
            filter_ = make(denoiser, gain_db=3.0)
            assert filter_.latency_s is None
            await filter_.start(rate)
            assert filter_.latency_s == stream.latency_s
            out = [await filter_.filter(chunk) for chunk in chunks]
            await filter_.stop()
            return out

        stream = denoiser.stream(rate, gain_db=3.0)
        found = asyncio.run(run())
        assert found == [stream.process(chunk) for chunk in chunks]
        assert np.frombuffer(b"".join(found), np.int16).std() > 100

    def test_the_event_loop_runs_while_it_computes(self, make, half, backend) -> None:
        audio = noise(1600)

        async def run() -> bytes:
            filter_ = make(half)
            await filter_.start(RATE)
            backend.gate.clear()
            task = asyncio.create_task(filter_.filter(audio.tobytes()))
            assert await ticks_while(backend.entered, task) >= 100
            backend.gate.set()
            return await task

        assert len(asyncio.run(run())) == 3200

    def test_the_order_is_kept(self, make, half) -> None:
        """Concurrent calls give the result of sequential ones."""
        audio = noise(RATE, 2)

        async def run() -> list[bytes]:
            filter_ = make(half, channels=2)
            await filter_.start(RATE)
            found = await asyncio.gather(*(filter_.filter(to_pcm(frame)) for frame in frames(audio)))
            await filter_.stop()
            return found

        found = from_pcm(b"".join(asyncio.run(run())), 2)
        assert_half(found, delayed(audio, half.stream(RATE).latency_samples))

    def test_in_a_transport(self, make, half) -> None:
        """Pipecat starts, feeds, sets, disables and stops the filter."""
        from pipecat.frames import frames as kinds
        from pipecat.tests.utils import run_test
        from pipecat.transports.base_input import BaseInputTransport
        from pipecat.transports.base_transport import TransportParams

        audio = noise(2 * RATE)
        filter_ = make(half)
        calls = []

        def spoken(part: np.ndarray) -> list:
            return [kinds.InputAudioRawFrame(to_pcm(frame), RATE, 1) for frame in frames(part)]

        class Microphone(BaseInputTransport):
            async def start(self, frame) -> None:
                await super().start(frame)
                await self.set_transport_ready(frame)

            async def process_frame(self, frame, direction) -> None:
                if isinstance(frame, kinds.FilterControlFrame):
                    await self._audio_in_queue.join()  # so that it is known which audio has it
                await super().process_frame(frame, direction)
                if isinstance(frame, kinds.FilterControlFrame):
                    calls.append((filter_.enabled, filter_.attenuation_limit_db))
                if isinstance(frame, kinds.TextFrame):
                    for later in spoken(audio[:, RATE:]):
                        await self.push_audio_frame(later)
                    await self._audio_in_queue.join()

        async def run() -> list:
            params = TransportParams(audio_in_enabled=True, audio_in_filter=filter_, audio_in_sample_rate=RATE)
            sent = [
                *spoken(audio[:, :RATE]),
                kinds.FilterUpdateSettingsFrame(settings={"attenuation_limit_db": 12.0}),
                kinds.FilterEnableFrame(enable=False),
                kinds.TextFrame("now the rest"),
            ]
            down, _ = await run_test(Microphone(params), frames_to_send=sent, start_timeout=60)
            return down

        down = asyncio.run(run())
        assert calls == [(True, 12.0), (False, 12.0)]
        out = b"".join(frame.audio for frame in down if isinstance(frame, kinds.InputAudioRawFrame))
        found = np.frombuffer(out, np.int16)[None]
        expected = delayed(audio, half.stream(RATE).latency_samples)
        assert found.shape == expected.shape
        assert_half(found[:, :RATE], expected[:, :RATE])
        np.testing.assert_array_equal(found[:, RATE + RAMP :], expected[:, RATE + RAMP :])
        assert filter_.latency_s is None  # Pipecat has stopped it

    def test_settings(self, make, half, caplog) -> None:
        from pipecat.frames.frames import FilterEnableFrame, FilterUpdateSettingsFrame

        limit, only = "attenuation_limit_db", "the only setting is 'attenuation_limit_db'"
        bad = [
            ({"volume": 11}, f"unknown filter setting 'volume'; {only}"),
            ({3: 1, "volume": 11, limit: 3}, f"unknown filter setting 3; {only}"),
            ({limit: -1}, "attenuation_limit_db must be 0 or more, got -1"),
            ({limit: "12"}, "attenuation_limit_db must be a number, got '12'"),
            (None, "they must be a mapping, got None"),
        ]

        async def run() -> None:
            filter_ = make(half)
            await filter_.process_frame(FilterEnableFrame(enable=False))
            await filter_.process_frame(FilterUpdateSettingsFrame(settings={"attenuation_limit_db": 6}))
            await filter_.start(RATE)
            assert not filter_.enabled
            assert filter_.attenuation_limit_db == 6
            await filter_.process_frame(FilterUpdateSettingsFrame(settings={"attenuation_limit_db": None}))
            assert filter_.attenuation_limit_db is None
            for settings, reason in bad:
                caplog.clear()
                await filter_.process_frame(FilterUpdateSettingsFrame(settings=settings))
                assert caplog.messages == [f"filter settings are not changed: {reason}"]
            assert filter_.attenuation_limit_db is None
            await filter_.stop()

        asyncio.run(run())

    def test_an_engine_that_is_too_slow(self, make, monkeypatch, caplog) -> None:
        """It takes three times as long as the audio: the call is never much more than a second late."""
        backend = Ticking(0.5)
        module = importlib.import_module("frcrn_accel.adapters.pipecat")
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: backend.time_s))
        audio, late_s = noise(20 * RATE), [0.0]

        async def run(half: Denoiser) -> np.ndarray:
            filter_, found = make(half, pause_s=math.inf), []
            await filter_.start(RATE)
            for number, frame in enumerate(frames(audio, 320)):
                backend.step_s = 0.06 if number < 300 else 0.002
                before_s = backend.time_s
                found.append(await filter_.filter(to_pcm(frame)))
                late_s.append(max(0.0, late_s[-1] + backend.time_s - before_s - 0.02))
            await filter_.stop()
            return from_pcm(b"".join(found), 1)

        with Denoiser(backend=backend) as half:
            found = asyncio.run(run(half))
            expected = delayed(audio, half.stream(RATE).latency_samples)
        assert 1 < max(late_s) < 1.1
        assert late_s[-1] == 0
        second = slice(RATE, round(1.4 * RATE))  # it gave up after half a second, for one
        np.testing.assert_array_equal(found[:, second], expected[:, second])
        assert_half(found[:, 15 * RATE :], expected[:, 15 * RATE :])
        assert caplog.text.count("it is more than 1 s behind") == 1

    def test_bad_settings_do_not_silence_an_output_transport(self, make, half) -> None:
        """Pipecat handles them in the task that plays, which an error would end."""
        from pipecat.frames import frames as kinds
        from pipecat.tests.utils import run_test
        from pipecat.transports.base_output import BaseOutputTransport
        from pipecat.transports.base_transport import TransportParams

        audio, played = noise(2 * RATE), []

        class Speaker(BaseOutputTransport):
            async def start(self, frame) -> None:
                await super().start(frame)
                await self.set_transport_ready(frame)

            async def write_audio_frame(self, frame) -> bool:
                played.append(frame.audio)
                return True

        def spoken(part: np.ndarray) -> list:
            return [kinds.OutputAudioRawFrame(to_pcm(frame), RATE, 1) for frame in frames(part, 640)]

        async def run() -> None:
            params = TransportParams(
                audio_out_enabled=True,
                audio_out_filter=make(half, pause_s=math.inf),
                audio_out_sample_rate=RATE,
                audio_out_end_silence_secs=0,
            )
            settings = kinds.FilterUpdateSettingsFrame(settings={"volume": 11})
            sent = [*spoken(audio[:, :RATE]), settings, *spoken(audio[:, RATE:])]
            await run_test(Speaker(params), frames_to_send=sent, start_timeout=60)

        asyncio.run(asyncio.wait_for(run(), 60))
        assert_half(from_pcm(b"".join(played), 1), delayed(audio, half.stream(RATE).latency_samples))

    def test_its_life(self, make, half, backend) -> None:
        others = set(threading.enumerate())

        async def run() -> None:
            filter_ = make(half)
            assert await filter_.filter(b"early") == b"early"
            await filter_.stop()
            await filter_.start(8_000)
            before = filter_.latency_s
            await filter_.stop()
            await filter_.start(RATE)
            assert filter_.latency_s < before
            assert await filter_.filter(b"") == b""
            # Stopping waits for what is being computed, and the event loop keeps running.
            backend.gate.clear()
            backend.entered.clear()
            computing = asyncio.create_task(filter_.filter(noise(1600).tobytes()))
            assert await asyncio.to_thread(backend.entered.wait, 60)
            stopping = asyncio.create_task(filter_.stop())
            await ticks_while(backend.entered, stopping)
            backend.gate.set()
            await stopping
            assert len(await computing) == 3200
            assert await filter_.filter(b"late") == b"late"

        asyncio.run(run())
        left = set(threading.enumerate()) - others
        assert not any(thread.name.startswith("frcrn-accel") for thread in left)

    @pytest.mark.parametrize("rate", [1_000, -1, 16_000.5, 0, None, "x", [], math.inf, math.nan, 1e300, 192_001])
    def test_an_impossible_rate_leaves_the_audio_as_it_is(self, make, half, caplog, rate) -> None:
        caplog.set_level("DEBUG")  # each retry is one line; they come after 1, 2 and 4 s
        pcm = to_pcm(noise(10 * RATE))

        async def run() -> bytes:
            filter_ = make(half)
            await filter_.start(rate)
            assert filter_.latency_s is None
            assert not filter_.is_denoising
            found = b"".join([await filter_.filter(pcm[first : first + 320]) for first in range(0, len(pcm), 320)])
            await filter_.stop()
            return found

        assert asyncio.run(run()) == pcm
        tries = [record.levelname for record in caplog.records if "no stream for this audio" in record.message]
        assert tries in [["ERROR", *["DEBUG"] * retries] for retries in (1, 2, 3)]

    def test_a_denoiser_that_opens_late(self, make, half, backend, monkeypatch) -> None:
        """The model fails to load at the start, and loads later: a gap of the latency, and nothing is lost."""
        stream = half.stream(RATE)
        load, opened = type(backend).load_step, []

        def fail_first(self, *arguments, **options):
            opened.append(1)
            if len(opened) == 1:
                raise OSError("no memory")
            return load(self, *arguments, **options)

        monkeypatch.setattr(type(backend), "load_step", fail_first)
        audio = noise(4 * RATE)

        async def run() -> bytes:
            filter_ = make(half)
            await filter_.start(RATE)
            found = []
            for number, frame in enumerate(frames(audio)):
                found.append(await filter_.filter(to_pcm(frame)))
                if number == 101:  # it is due
                    while not filter_.is_denoising:
                        found.append(await filter_.filter(b""))
                        await asyncio.sleep(0)
            assert filter_.latency_s == stream.latency_s
            await filter_.stop()
            return b"".join(found)

        with Denoiser(backend=type(backend)(0.5)) as half:
            found = from_pcm(asyncio.run(asyncio.wait_for(run(), 60)), 1)
        expected = delayed(audio, stream.latency_samples)
        np.testing.assert_array_equal(found[:, :RATE], audio[:, :RATE])
        assert_half(found[:, 2 * RATE :], expected[:, 2 * RATE :])
        assert np.abs(found).max() <= 20_000

    def test_two_transports(self, make, half, caplog) -> None:
        async def run() -> None:
            filter_, pcm = make(half), to_pcm(noise(RATE))
            await filter_.start(RATE)
            await filter_.start(24_000)
            assert await asyncio.gather(filter_.filter(pcm), filter_.filter(pcm[:640])) == [pcm, pcm[:640]]
            await filter_.stop()
            await filter_.stop()
            await filter_.start(RATE)
            assert filter_.is_denoising
            await filter_.stop()

        asyncio.run(run())
        assert caplog.text.count("create one for each transport") == 1

    @pytest.mark.parametrize("pause_s", [0.2, math.inf])
    def test_a_pause_separates_utterances(self, make, half, pause_s) -> None:
        """The rest of an utterance does not come out at the start of the next."""
        first, second = noise(RATE), noise(RATE, seed=1)
        late = half.stream(RATE).latency_samples

        class Loop(asyncio.SelectorEventLoop):
            ahead = 0.0

            def time(self) -> float:
                return super().time() + self.ahead

        async def run() -> np.ndarray:
            filter_ = make(half, pause_s=pause_s)
            await filter_.start(RATE)
            for frame in frames(first):
                await filter_.filter(to_pcm(frame))
            asyncio.get_running_loop().ahead += 100
            found = [await filter_.filter(to_pcm(frame)) for frame in frames(second)]
            await filter_.stop()
            return from_pcm(b"".join(found), 1)

        with asyncio.Runner(loop_factory=Loop) as runner:
            found = runner.run(run())
        if pause_s == math.inf:
            assert_half(found[:, :late], first[:, RATE - late :])
        else:
            assert not found[:, :late].any()
        assert_half(found[:, late + RAMP :], delayed(second, late)[:, late + RAMP :])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"channels": 0}, "channels must be at least 1, got 0"),
            ({"channels": 65}, "audio must have 1 to 64 channels, got 65"),
            ({"channels": 1.5}, r"channels must be a whole number, got 1\.5"),
            ({"channels": None}, "channels must be a whole number, got None"),
            ({"pause_s": 0}, "pause_s must be above 0, got 0"),
            ({"pause_s": math.nan}, "pause_s must be above 0, got nan"),
            ({"pause_s": "1"}, "pause_s must be a number, got '1'"),
            ({"lookahead_s": 0.05}, r"lookahead_s must be a multiple of 0\.04 s, up to 0\.28 s, got 0\.05 s"),
            ({"high_band": "up"}, "high_band must be one of follow, drop, got 'up'"),
        ],
    )
    def test_bad_arguments_are_refused_at_once(self, make, half, options, message) -> None:
        with pytest.raises(ValueError, match=message):
            make(half, **options)
        with pytest.raises(TypeError, match="averaging must be an Averaging or None, got int"):
            make(half, averaging=3)

    def test_the_high_band(self, make, half) -> None:
        """It is the denoiser's own, or as asked for."""
        audio = noise(48_000)
        streams = {mode: half.stream(48_000, high_band=mode) for mode in ("follow", "drop")}
        expected = {mode: stream.process(to_pcm(audio)) for mode, stream in streams.items()}
        assert expected["follow"] != expected["drop"]

        async def run(denoiser: Denoiser, **options) -> bytes:
            filter_ = make(denoiser, **options)
            await filter_.start(48_000)
            out = await filter_.filter(to_pcm(audio))
            await filter_.stop()
            return out

        assert asyncio.run(run(half)) == expected["follow"]
        assert asyncio.run(run(half, high_band="drop")) == expected["drop"]
        with Denoiser(backend=DelayingBackend(0.5), high_band="drop") as dropping:
            assert asyncio.run(run(dropping)) == expected["drop"]
            assert asyncio.run(run(dropping, high_band="follow")) == expected["follow"]

    def test_odd_arguments_and_other_loops(self, make, half, caplog) -> None:
        """None, nothing, a cancelled call and an event loop that is closed leave the filter working."""
        audio = noise(2 * RATE)
        filter_ = make(half)

        async def begin() -> bytes:
            await filter_.start(RATE)
            assert await filter_.filter(None) is None
            assert await filter_.filter(b"") == b""
            cancelled = asyncio.create_task(filter_.filter(b""))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            return await filter_.filter(to_pcm(audio[:, :RATE]))

        async def end() -> bytes:
            out = await filter_.filter(to_pcm(audio[:, RATE:]))
            await filter_.stop()
            return out

        found = from_pcm(asyncio.run(begin()) + asyncio.run(end()), 1)
        assert_half(found, delayed(audio, half.stream(RATE).latency_samples))
        assert caplog.text.count("got NoneType, not bytes") == 1

    def test_cancelled_calls_with_parts_of_samples(self, make, half, backend) -> None:
        """A cancelled call loses its own output; all later output keeps its position, to the byte."""
        audio = noise(2 * RATE)
        pcm, cancelled = to_pcm(audio), slice(RATE, RATE + 641)

        async def run() -> tuple[bytes, bytes]:
            filter_ = make(half)
            await filter_.start(RATE)
            before = await filter_.filter(pcm[: cancelled.start])
            backend.gate.clear()
            backend.entered.clear()
            blocked = asyncio.create_task(filter_.filter(pcm[cancelled.start : cancelled.start + 640]))
            assert await asyncio.to_thread(backend.entered.wait, 60)
            waiting = asyncio.create_task(filter_.filter(pcm[cancelled.start + 640 : cancelled.stop]))
            await asyncio.sleep(0)
            for task in (blocked, waiting):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            backend.gate.set()
            after = await filter_.filter(pcm[cancelled.stop :])
            await filter_.stop()
            return before, after

        before, after = asyncio.run(run())
        expected = delayed(audio, half.stream(RATE).latency_samples)
        assert_half(from_pcm(before, 1), expected[:, : RATE // 2])
        assert_half(from_pcm(after, 1), expected[:, RATE // 2 + 320 :])

    def test_chunks_that_split_samples_lose_nothing(self, make, half) -> None:
        audio = noise(RATE, 2)
        pcm = to_pcm(audio)

        async def run() -> list[bytes]:
            filter_ = make(half, channels=2)
            await filter_.start(RATE)
            found = [await filter_.filter(pcm[first : first + 641]) for first in range(0, len(pcm), 641)]
            await filter_.stop()
            return found

        found = from_pcm(b"".join(asyncio.run(run())), 2)
        assert_half(found, delayed(audio, half.stream(RATE).latency_samples))

    def test_without_the_package(self, monkeypatch) -> None:
        missing("pipecat", "pipecat.audio.filters.base_audio_filter", monkeypatch)


class TestLiveKit:
    @pytest.fixture
    def rtc(self):
        return pytest.importorskip("livekit.rtc", reason="needs the [livekit] extra")

    @pytest.fixture
    def make(self, rtc) -> Iterator[Callable]:
        from frcrn_accel.adapters.livekit import FrcrnProcessor

        made = []

        def make(*arguments, **options):
            made.append(FrcrnProcessor(*arguments, **options))
            return made[-1]

        yield make
        for processor in made:
            processor._close()

    @staticmethod
    def frame(rtc, samples: np.ndarray, rate: int = RATE):
        return rtc.AudioFrame(to_pcm(samples), rate, len(samples), samples.shape[1], userdata={"n": 1})

    def test_a_frame_returns_at_once_while_the_engine_is_blocked(self, rtc, make, half, backend) -> None:
        """Called on the event loop, as by LiveKit; without headroom all audio is late and unprocessed."""
        audio = noise(8000)

        async def run() -> list:
            processor = make(half, sample_rate=RATE, headroom_s=0.0)
            backend.gate.clear()
            out = [processor._process(self.frame(rtc, frame)) for frame in frames(audio)]
            assert await ticks_while(backend.entered, None) >= 100
            assert processor.late_s == pytest.approx(0.5 - processor.latency_s, abs=0.021)
            backend.gate.set()
            return out

        out = asyncio.run(run())
        assert {(f.sample_rate, f.num_channels, f.samples_per_channel) for f in out} == {(RATE, 1, FRAME)}
        assert out[0].userdata == {"n": 1}
        found = np.concatenate([np.asarray(f.data) for f in out])[None]
        late = half.stream(RATE).latency_samples
        dry = late + 320 + RAMP
        np.testing.assert_array_equal(found[:, dry:], delayed(audio, late)[:, dry:])

    def test_in_an_audio_stream(self, rtc, make, denoiser, noisy) -> None:
        """With a real LiveKit track, in real time, and the packaged model: the stream of the frames that arrived."""
        pcm = (noisy[RATE : 2 * RATE] * 32767).astype(np.int16)
        stream = denoiser.stream(RATE)
        arrived: list[np.ndarray] = []

        def patient(processor):
            """Make each frame wait for its result, so that none is late on a busy machine, and keep what it was."""
            process = processor._process

            def process_and_settle(frame):
                arrived.append(np.array(frame.data))
                out = process(frame)
                processor.wait()
                return out

            processor._process = process_and_settle
            return processor

        async def run() -> tuple[np.ndarray, float]:
            processor = patient(make(denoiser, sample_rate=RATE))
            source = rtc.AudioSource(RATE, 1)
            track = rtc.LocalAudioTrack.create_audio_track("microphone", source)
            audio_stream = rtc.AudioStream(track, sample_rate=RATE, num_channels=1, noise_cancellation=processor)

            async def speak() -> None:
                await source.capture_frame(rtc.AudioFrame(pcm.tobytes(), RATE, 1, len(pcm)))
                silence = rtc.AudioFrame.create(RATE, 1, FRAME)
                while True:
                    await source.capture_frame(silence)

            speaking = asyncio.create_task(speak())
            found = []
            heard_s = 0.0  # since the first frame of the speech: LiveKit begins with silence of its own
            async for event in audio_stream:
                found.append(np.asarray(event.frame.data))
                heard_s += 0.01 if heard_s or found[-1].any() else 0.0
                if heard_s >= 1.2:
                    break
            speaking.cancel()
            await audio_stream.aclose()
            frame = rtc.AudioFrame.create(RATE, 1, FRAME)  # LiveKit has closed it
            assert processor._process(frame) is frame
            return np.concatenate(found), processor.late_s

        found, late_s = asyncio.run(asyncio.wait_for(run(), 60))
        assert late_s == 0
        # A busy machine loses frames in LiveKit itself, before the processor: they are in neither.
        expected = np.frombuffer(stream.process(np.concatenate(arrived).tobytes()), np.int16)
        headroom = round(0.04 * RATE)
        length = len(found) - headroom
        assert np.abs(found[headroom:].astype(int) - expected[:length]).max() <= 1
        assert np.abs(expected[:length].astype(int)).max() > 500

    def test_another_track_is_another_signal(self, rtc, make, half) -> None:
        processor = make(half, sample_rate=RATE)
        told = {"room_name": "r", "participant_identity": "a", "publication_sid": "1"}

        def send(samples: np.ndarray) -> np.ndarray:
            out = []
            for frame in frames(samples):
                out.append(np.asarray(processor._process(self.frame(rtc, frame)).data))
                processor.wait()
            return np.concatenate(out)

        processor._on_stream_info_updated(**told)
        audio = noise(RATE)
        send(audio)
        processor._on_stream_info_updated(**told)
        assert send(audio[:, :FRAME]).any()
        processor._on_stream_info_updated(**told | {"publication_sid": "2"})
        assert not send(audio[:, :3200])[RAMP:].any()  # the track before fades out
        # Turned off and on, LiveKit has gone round it in between: what it returned fades out.
        send(audio)
        processor.enabled = False
        assert not processor.enabled
        processor.enabled = True
        found = send(audio[:, :3200])
        assert not found[FRAME:].any()
        fade = 1 - np.arange(1, FRAME + 1) / (FRAME + 1)
        np.testing.assert_allclose(found[:FRAME], audio[0, :FRAME] * fade, atol=1)

    def test_the_attenuation_limit(self, rtc, make, half) -> None:
        processor = make(half, sample_rate=RATE)
        assert processor.attenuation_limit_db is None
        processor.attenuation_limit_db = 0.0
        with pytest.raises(ValueError, match="0 or more"):
            processor.attenuation_limit_db = -3.0
        audio = noise(RATE)
        out = []
        for frame in frames(audio):
            out.append(np.asarray(processor._process(self.frame(rtc, frame)).data))
            processor.wait()
        expected = delayed(audio, round(processor.latency_s * RATE))
        assert np.abs(np.concatenate(out) - expected.astype(int)).max() <= 1

    def test_bypassed_it_stays_in_step(self, rtc, make, half) -> None:
        processor = make(half, sample_rate=RATE)
        audio = noise(3 * RATE)
        late = round(processor.latency_s * RATE)
        found = []
        for number, frame in enumerate(frames(audio)):
            processor.bypassed = 100 <= number < 200
            found.append(np.asarray(processor._process(self.frame(rtc, frame)).data))
            processor.wait()
        found, expected = np.concatenate(found)[None], delayed(audio, late)
        dry, back = slice(RATE + RAMP, 2 * RATE + late), 2 * RATE + late + RAMP
        assert_half(found[:, :RATE], expected[:, :RATE])
        np.testing.assert_array_equal(found[:, dry], expected[:, dry])
        assert_half(found[:, back:], expected[:, back:])

    def test_what_is_no_frame_comes_back(self, rtc, make, half, caplog) -> None:
        processor = make(half, sample_rate=RATE)
        assert processor._process(None) is None
        assert processor._process("text") == "text"
        assert caplog.text.count("frames are returned unprocessed") == 1
        assert processor._process(self.frame(rtc, noise(0))).samples_per_channel == 0
        audio = noise(RATE)
        found = []
        for frame in frames(audio):
            found.append(np.asarray(processor._process(self.frame(rtc, frame)).data))
            processor.wait()
        assert_half(np.concatenate(found)[None], delayed(audio, round(processor.latency_s * RATE)))

    def test_bad_arguments_are_refused_at_once(self, make, half) -> None:
        with pytest.raises(AudioError, match="8000 to 192000 Hz"):
            make(half, sample_rate=1_000)
        with pytest.raises(ValueError, match=r"multiple of 0\.02 s"):
            make(half, step_s=0.03)
        with pytest.raises(ValueError, match="high_band must be one of follow, drop, got 'up'"):
            make(half, high_band="up")

    def test_a_frame_with_an_impossible_rate(self, rtc, make, half, caplog) -> None:
        """It comes back itself, and the frames after it are denoised as before."""
        processor, audio = make(half, sample_rate=RATE), noise(2 * RATE)
        late = round(processor.latency_s * RATE)
        found = []
        for number, frame in enumerate(frames(audio)):
            if number in {50, 120}:
                for rate in (0, -RATE, 10**9):
                    bad = self.frame(rtc, frame, rate)
                    assert processor._process(bad) is bad
            found.append(np.asarray(processor._process(self.frame(rtc, frame)).data))
            processor.wait()
        assert_half(np.concatenate(found)[None], delayed(audio, late))
        assert caplog.text.count("frames are returned unprocessed") == 1

    def test_the_high_band(self, rtc, make, half) -> None:
        stream, audio = half.stream(48_000, high_band="drop"), noise(48_000)
        processor = make(half, high_band="drop")
        found = []
        for frame in frames(audio, 480):
            found.append(np.asarray(processor._process(self.frame(rtc, frame, 48_000)).data))
            processor.wait()
        headroom = round(0.04 * 48_000)
        expected = stream.process(audio)[:, : 48_000 - headroom]
        np.testing.assert_array_equal(np.concatenate(found)[None, headroom:], expected)

    def test_without_the_package(self, monkeypatch) -> None:
        missing("livekit", "livekit.rtc", monkeypatch)


class TestCalls:
    """The benchmark `calls`, on 20 s: an engine that fails, off and on, limits, rates, odd chunks."""

    @pytest.fixture
    def calls(self):
        path = Path(__file__).parent.parent / "benchmarks" / "calls.py"
        spec = importlib.util.spec_from_file_location("calls", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules["calls"] = module
        spec.loader.exec_module(module)
        yield module
        del sys.modules["calls"]

    @pytest.mark.parametrize(("package", "seed"), [("pipecat", 0), ("pipecat", 1), ("livekit", 0)])
    def test_no_click_and_no_sample_lost(self, calls, package: str, seed: int) -> None:
        pytest.importorskip(package, reason=f"needs the [{package}] extra")
        with warnings.catch_warnings(action="ignore"):  # of its own modules, about themselves
            call = getattr(calls, f"{package}_call")(25.0, seed=seed, every=200)
        assert call.failures > 0
        assert call.clicks == 0
        assert call.lost_samples == 0
        assert 0.15 <= call.silent_s <= 0.5  # before the first sample, and where a longer frame came
        assert 1 < call.dry_s < 24

    def test_the_detector_finds_a_click(self, calls) -> None:
        call, hum = calls.Call(), calls._hum(RATE, 0.0, RATE)
        call.add(hum, RATE, 0.0, RATE)
        assert call.clicks == 0
        switched = hum.copy()
        peaks = [int(np.argmax(hum[first : first + 200])) + first for first in (4000, 12_000)]
        switched[slice(*peaks)] //= 2
        call.add(switched, RATE, 0.0, RATE)
        assert call.clicks == 2


def missing(adapter: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check the error of an adapter whose package is not installed."""
    name = f"frcrn_accel.adapters.{adapter}"
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(MissingExtraError, match=rf"pip install 'frcrn-accel\[{adapter}\]'$") as caught:
        importlib.import_module(name)
    assert "\n" not in str(caught.value)


class TestLive:
    def test_what_comes_out_is_the_stream_in_time(self, denoiser, noisy) -> None:
        """Speech in chunks of 10 ms and a rest: the output is that of `Stream`, as long as the input."""
        audio = noisy[None, : RATE + 77]
        stream = denoiser.stream(RATE)
        kept: list[np.ndarray] = []
        played: list[np.ndarray] = []
        status = LiveStatus(RATE)
        seconds = iter(np.arange(1000) * 0.001)  # each chunk takes 1 ms
        denoise_live(
            frames(audio),
            stream,
            [aligned(kept.append, stream.latency_samples), played.append],
            status,
            clock=lambda: float(next(seconds)),
        )
        other = denoiser.stream(RATE)
        expected = np.concatenate([other.process(audio), other.flush()], axis=1)
        np.testing.assert_array_equal(np.concatenate(played, axis=1), expected)
        np.testing.assert_array_equal(np.concatenate(kept, axis=1), expected[:, other.latency_samples :])
        assert status.audio_s == pytest.approx(audio.shape[1] / RATE)
        assert status.processing_s == pytest.approx(0.101)
        assert status.mean_real_time_factor == pytest.approx(0.101 / (RATE + 77) * RATE)
        assert status.real_time_factor == pytest.approx(0.1, rel=0.02)

    @pytest.mark.parametrize("error", [RuntimeError("no memory\nat all"), SystemExit(3)])
    def test_an_engine_that_fails_ends_no_recording(self, half, backend, caplog, error) -> None:
        """The sound comes through in its place, and is denoised again a second later; nothing is lost."""
        stream, status = half.stream(RATE), LiveStatus(RATE)
        audio = (noise(4 * RATE) / np.float32(32_768)).astype(np.float32)
        kept: list[np.ndarray] = []

        def recorded() -> Iterator[np.ndarray]:
            for number, frame in enumerate(frames(audio)):
                backend.error = error if 100 <= number < 110 else None
                yield frame

        denoise_live(recorded(), stream, [aligned(kept.append, stream.latency_samples)], status)
        found, late = np.concatenate(kept, axis=1), stream.latency_samples
        assert found.shape == audio.shape
        assert status.unprocessed_s == pytest.approx(1.0, abs=0.1)
        end = RATE - late
        np.testing.assert_allclose(found[:, :end], audio[:, :end] / 2, atol=1e-6)
        np.testing.assert_array_equal(
            found[:, end + 2 * RAMP : 2 * RATE - late], audio[:, end + 2 * RAMP : 2 * RATE - late]
        )
        np.testing.assert_allclose(found[:, 3 * RATE :], audio[:, 3 * RATE :] / 2, atol=1e-6)
        assert caplog.text.count("the audio is returned unprocessed until a retry succeeds") == 1

    def test_samples_that_are_not_finite_are_silence(self, half) -> None:
        stream = half.stream(RATE, gain_db=0)
        audio = (noise(RATE) / np.float32(32_768)).astype(np.float32)
        broken, silent = audio.copy(), audio.copy()
        broken[:, 5_000:5_003], silent[:, 5_000:5_003] = [np.nan, np.inf, -np.inf], 0
        kept: list[np.ndarray] = []
        denoise_live(frames(broken), stream, [kept.append], LiveStatus(RATE))
        expected = half.stream(RATE, gain_db=0)
        np.testing.assert_array_equal(
            np.concatenate(kept, axis=1), np.concatenate([expected.process(silent), expected.flush()], axis=1)
        )

    def test_the_meter(self) -> None:
        meter = LevelMeter(RATE)
        assert meter.level_db == FLOOR_DB
        tone = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)).astype(np.float32)[None]
        for frame in frames(tone):
            meter.update(frame)
        assert meter.level_db == pytest.approx(20 * np.log10(0.5) - 3.01, abs=0.01)
        # After its horizon of 0.3 s of silence the power is 1 / e.
        meter.update(np.zeros((1, round(0.3 * RATE)), np.float32))
        assert meter.level_db == pytest.approx(20 * np.log10(0.5) - 3.01 - 4.34, abs=0.01)
        meter.update(np.zeros((1, 100 * RATE), np.float32))
        meter.update(np.zeros((1, 0), np.float32))
        assert meter.level_db == FLOOR_DB

    def test_the_factor_is_about_the_last_second(self) -> None:
        status = LiveStatus(RATE)
        assert np.isnan(status.mean_real_time_factor)
        block = np.zeros((1, RATE // 10), np.float32)
        for _ in range(100):
            status.update(block, block, 0.05)
        assert status.real_time_factor == pytest.approx(0.5)
        for _ in range(10):
            status.update(block, block, 0.1)
        assert status.real_time_factor == pytest.approx(1 - 0.5 / np.e)

    def test_a_feed_that_is_full_counts_what_it_loses(self) -> None:
        feed = Feed(2)
        blocks = [np.full((1, 10), i, np.float32) for i in range(4)]
        for block in blocks[:3]:
            feed.put(block)
        assert feed.lost_samples == 10
        feed.close()
        feed.put(blocks[3])
        assert [block[0, 0] for block in feed] == [0, 1]
        assert feed.lost_samples == 10

    def test_a_feed_keeps_copies(self) -> None:
        """A sound card reuses its buffer."""
        feed = Feed(2)
        buffer = np.ones((10, 1), np.float32)
        feed.put(buffer.T)
        buffer[:] = 0
        feed.close()
        assert [block.tolist() for block in feed] == [[[1.0] * 10]]

    def test_a_feed_closes_when_nothing_comes(self) -> None:
        feed = Feed(2, patience_s=0.01)
        feed.put(np.zeros((1, 10), np.float32))
        assert len(list(feed)) == 1
        assert feed.is_closed

    def test_first_samples(self) -> None:
        audio = noise(1000)
        endless = (audio[:, i : i + 300] for i in range(0, 10**9, 300))
        np.testing.assert_array_equal(np.concatenate(list(first_samples(endless, 700)), axis=1), audio[:, :700])
        assert next(endless).shape == (1, 100)  # what was not asked for is still there
        assert list(first_samples(endless, 0)) == []


class TestCommand:
    @pytest.fixture
    def card(self, monkeypatch, noisy) -> Callable[[Callable[[Feed], None]], None]:
        """Return a function that replaces the sound card by noisy speech, from its first second, and an end."""
        pytest.importorskip("onnxruntime")
        module = importlib.import_module("frcrn_accel.cli.live")
        device = sound_card.Device(0, "a file", 1, 1, RATE)
        monkeypatch.setattr(module, "find_device", lambda wanted, kind: device)

        def install(end: Callable[[Feed], None], seconds: float = 1.5) -> None:
            @contextmanager
            def open_card(source, speaker, feed, playout, rate_hz, channels):
                def start() -> None:
                    for frame in frames(noisy[None, RATE : RATE + round(seconds * RATE)]):
                        feed.put(frame)
                        if playout is not None:
                            playout.take(np.zeros((1, FRAME), np.float32))
                    end(feed)

                yield start

            monkeypatch.setattr(module, "sound_card", open_card)

        return install

    @pytest.fixture
    def run(self, monkeypatch, capsys):
        def run(*arguments: object) -> tuple[int, str]:
            monkeypatch.setattr(sys, "argv", ["frcrn-accel", "live", "--backend", "ort", *map(str, arguments)])
            with pytest.raises(SystemExit) as exit_:
                cli.main()
            captured = capsys.readouterr()
            assert "Traceback" not in captured.err
            return exit_.value.code, captured.out + captured.err

        return run

    @pytest.fixture
    def denoiser(self) -> Iterator[Denoiser]:
        """Open the denoiser that the command opens."""
        with Denoiser(LIVE_MODEL, backend="ort") as denoiser:
            yield denoiser

    @staticmethod
    def expected(denoiser, noisy, samples: int) -> np.ndarray:
        stream = denoiser.stream(RATE)
        audio = noisy[None, RATE : RATE + samples]
        return np.concatenate([stream.process(audio), stream.flush()], axis=1)[0, stream.latency_samples :]

    def test_ctrl_c_ends_it_with_a_whole_file(self, card, run, denoiser, noisy, tmp_path) -> None:
        before = signal.getsignal(signal.SIGINT)
        card(lambda feed: signal.raise_signal(signal.SIGINT))
        code, text = run("-o", tmp_path / "out.wav", "--threads", 1)
        assert code == 0
        late_ms = 1000 * denoiser.stream(RATE).latency_s
        on = f"{LIVE_MODEL} on ort, fp32 (CPUExecutionProvider, 1 thread)"
        assert f"a file, 16000 Hz, {on}; latency {late_ms:.0f} ms plus" in text
        assert f"1.5 s -> {tmp_path / 'out.wav'}, real-time factor 0." in text
        assert "lost" not in text
        written, rate = soundfile.read(tmp_path / "out.wav")
        assert rate == RATE
        np.testing.assert_allclose(written, self.expected(denoiser, noisy, 24_000), atol=1 / 32_768)
        assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_system_without_sighup(self, card, run, monkeypatch, tmp_path) -> None:
        """Windows has none; a closed window ends the process there."""
        there = {name: value for name, value in vars(signal).items() if name != "SIGHUP"}
        monkeypatch.setattr(importlib.import_module("frcrn_accel.cli.live"), "signal", types.SimpleNamespace(**there))
        card(lambda feed: signal.raise_signal(signal.SIGTERM))
        code, text = run("-o", tmp_path / "out.wav", "--threads", 1)
        assert code == 0, text
        assert soundfile.info(tmp_path / "out.wav").frames == 24_000

    def test_a_duration(self, card, run, denoiser, noisy, tmp_path) -> None:
        card(lambda feed: None)
        code, text = run("-o", tmp_path / "out.flac", "--duration-s", 0.77)
        assert code == 0, text
        written, _ = soundfile.read(tmp_path / "out.flac")
        np.testing.assert_allclose(written, self.expected(denoiser, noisy, 12_320), atol=1 / 32_768)

    def test_a_card_that_is_removed_is_an_error_after_the_file_is_written(self, card, run, tmp_path) -> None:
        card(Feed.close)
        code, text = run("-o", tmp_path / "out.wav")
        assert code == 2
        assert text.splitlines()[-1] == "frcrn-accel: error: the sound card stopped unexpectedly after 1.5 s: a file"
        assert soundfile.info(tmp_path / "out.wav").frames == 24_000

    def test_losses_are_reported(self, card, run) -> None:
        """The queue holds 5 s, and playing starts before anything is computed."""
        pytest.importorskip("onnx", reason="the graph for a shorter look-ahead is written with onnx")

        def end(feed: Feed) -> None:
            feed.overflows = 3
            signal.raise_signal(signal.SIGINT)

        card(end, seconds=6)
        code, text = run("--lookahead-s", 0)
        assert code == 0
        assert "latency 80 ms" in text  # and 40 ms of it are the headroom
        assert text.splitlines()[-1].startswith("5.0 s, real-time factor 0.")
        assert text.splitlines()[-1].endswith(
            ", 1.00 s lost (computing too slow), 3 sound card overruns, 5.96 s silent (computed too late)"
        )

    def test_an_engine_that_fails_leaves_a_whole_file(self, card, run, monkeypatch, tmp_path) -> None:
        """One line says why, when it happens, and another how much, at the end."""
        failing = DelayingBackend()
        failing.error = RuntimeError("no memory\nat all")
        module = importlib.import_module("frcrn_accel.cli.live")
        monkeypatch.setattr(module, "DenoiserOptions", lambda model, **options: DenoiserOptions(backend=failing))
        card(lambda feed: signal.raise_signal(signal.SIGINT))
        code, text = run("-o", tmp_path / "out.wav")
        assert code == 2
        *_, summary, last = text.splitlines()
        assert summary.endswith(", 1.48 s unprocessed (the engine failed)")  # less what did not fill a step
        assert last == "frcrn-accel: error: the engine failed: 1.5 of 1.5 s are unprocessed"
        assert soundfile.info(tmp_path / "out.wav").frames == 24_000

    def test_a_file_that_is_there(self, card, run, tmp_path) -> None:
        out = tmp_path / "out.wav"
        out.write_bytes(b"precious")
        card(lambda feed: pytest.fail("the microphone was on"))
        code, text = run("-o", out)
        assert code == 2
        assert "exists" in text
        assert out.read_bytes() == b"precious"

    def test_a_card_that_prefers_an_impossible_rate(self, card, run, monkeypatch) -> None:
        card(lambda feed: pytest.fail("the microphone was on"))
        device = sound_card.Device(0, "a card", 2, 2, 384_000)
        monkeypatch.setattr(importlib.import_module("frcrn_accel.cli.live"), "find_device", lambda *wanted: device)
        code, text = run()
        expected = "a card prefers 384000 Hz, and streams take 8000 to 192000 Hz: choose with --sample-rate"
        assert (code, text) == (2, f"frcrn-accel: error: {expected}\n")

    @pytest.mark.parametrize("options", [(), ("--sample-rate", RATE)])
    def test_more_channels_than_a_stream_has(self, run, options) -> None:
        """Whether the rate is given or the sound card's."""
        code, text = run("--channels", 65, *options)
        assert (code, text) == (2, "frcrn-accel: error: audio must have 1 to 64 channels, got 65\n")

    def test_an_option_that_the_model_refuses_is_one_line(self, card, run) -> None:
        card(lambda feed: pytest.fail("the microphone was on"))
        code, text = run("-o", "never.wav", "--lookahead-s", 0.01)
        assert code == 2
        assert text.startswith("frcrn-accel: error: Invalid value: lookahead_s must be a multiple of ")
        assert len(text.splitlines()) == 1
        assert not Path("never.wav").exists()

    def test_no_sound_card(self, run) -> None:
        """Whether the package, PortAudio, a sound card or the device is missing, the error is one line."""
        code, text = run("--input-device", "no device has this name 5e0c")
        assert code == 2
        (line,) = text.splitlines()
        assert line.startswith("frcrn-accel: error: ")
        hints = ("pip install 'frcrn-accel[live]'", "install", "no sound card with an input", "--list-devices")
        assert any(hint in line for hint in hints)

    def test_without_the_package(self, run, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "sounddevice", None)
        for arguments in ((), ("--list-devices",)):
            code, text = run(*arguments)
            assert code == 2
            assert text.startswith("frcrn-accel: error: Live audio needs more packages (")
            assert text.endswith("): pip install 'frcrn-accel[live]'\n")

    def test_devices_can_be_listed_or_it_says_what_to_install(self, run) -> None:
        pytest.importorskip("_sounddevice", reason="needs the [live] extra")
        devices, reason = [], None
        try:
            devices = sound_card.list_devices()
        except SoundCardError as error:
            reason = str(error)
        code, text = run("--list-devices")
        if reason is not None:
            assert reason.startswith("PortAudio cannot be loaded (")
            assert (code, text) == (2, f"frcrn-accel: error: {reason}\n")
        else:
            assert code == 0
            assert all(f" {device.number} " in text for device in devices)
            assert devices or "PortAudio finds no device" in text
            with pytest.raises(SoundCardError, match=r"finds no such device|choose another with --list-devices"):
                sound_card.find_device("no device has this name 5e0c", "output")
