"""Live streams."""

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delaying import DelayingBackend
from frcrn_accel import AudioError, Backend, BackendUnavailable, Denoiser, EngineError
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.bench.configurations import released_size_model
from frcrn_accel.models import CACHE_DIR_VARIABLE, LIVE_MODEL, find_model, read_weights
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quality.clips import read_clips
from frcrn_accel.quantize.recordings import GATE_AUDIO
from frcrn_accel.streaming import Averaging, Statistics, Stream, process_streams
from frcrn_accel.streaming.averaging import shares
from frcrn_accel.streaming.level import RunningLevel
from frcrn_accel.testing import FunctionBackend

RATES = [8_000, 16_000, 22_050, 24_000, 44_100, 48_000]


@pytest.fixture(scope="module")
def denoiser() -> Iterator[Denoiser]:
    with Denoiser(backend="ort", threads=1) as denoiser:
        yield denoiser


@pytest.fixture(scope="module")
def delay() -> Iterator[Denoiser]:
    with Denoiser(backend=DelayingBackend()) as denoiser:
        yield denoiser


def sent(stream: Stream, audio: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Send a signal in chunks of these sizes, repeatedly; return the whole output, flushed."""
    parts, first = [], 0
    for size in cycle(sizes):
        chunk = audio[:, first : first + size]
        out = stream.process(chunk)
        assert out.shape == chunk.shape
        parts.append(out)
        first += size
        if first >= audio.shape[1]:
            return np.concatenate([*parts, stream.flush()], axis=1)
    raise AssertionError


def noise(seconds: float, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.05 * rng.standard_normal((channels, int(seconds * rate)))).astype(np.float32)


class TestExactness:
    @pytest.mark.parametrize("sizes", [[320], [1, 7, 1000, 3, 319, 48_000], [48_000]], ids=str)
    def test_with_held_means_it_is_the_whole_pass(self, denoiser: Denoiser, sizes: list[int]) -> None:
        assert error_with_held_means(denoiser, noise(2.0), 0.02, sizes) <= 1e-5

    @pytest.mark.thorough
    def test_at_the_released_size_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Chunks of one sample to three seconds, 128 channels and two U-Nets of random weights."""
        pytest.importorskip("onnx")
        monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path))
        with Denoiser(released_size_model(tmp_path).file.path, backend="ort", threads=2) as denoiser:
            assert error_with_held_means(denoiser, noise(3.2), 0.1, [1, 7, 1000, 3, 319, 48_000]) <= 1e-4

    @pytest.mark.parametrize("rate", [16_000, 44_100])
    def test_chunks_do_not_change_a_bit(self, denoiser: Denoiser, rate: int) -> None:
        audio = noise(1.5, rate, channels=2)
        first = sent(denoiser.stream(rate, channels=2), audio, [rate // 50])
        for sizes in ([1, 5, 2000], [audio.shape[1]], [777]):
            np.testing.assert_array_equal(sent(denoiser.stream(rate, channels=2), audio, sizes), first)

    def test_longer_steps_give_the_same_up_to_rounding(self, denoiser: Denoiser) -> None:
        audio = noise(1.5)
        outputs = []
        for step_s in (0.02, 0.1, 0.34):
            stream = denoiser.stream(16_000, step_s=step_s)
            outputs.append(sent(stream, audio, [160])[:, stream.latency_samples :])
        for other in outputs[1:]:
            assert np.abs(other - outputs[0]).max() <= 1e-5 * np.abs(outputs[0]).max()

    @pytest.mark.parametrize("rate", RATES)
    def test_the_delay_is_what_it_says(self, delay: Denoiser, rate: int) -> None:
        """An engine that changes nothing returns low tones after exactly `latency_samples`."""
        time = np.arange(3 * rate) / rate
        tone = (0.3 * np.sin(2 * np.pi * 200 * time)).astype(np.float32)[None]
        stream = delay.stream(rate)
        found = sent(stream, tone, [rate // 100, 13, 2 * rate // 25])
        assert found.shape[1] == tone.shape[1] + stream.latency_samples
        assert not found[:, : stream.latency_samples - rate // 100].any()
        error = (found[:, stream.latency_samples :] - tone)[:, rate // 10 : -rate // 10]
        assert np.abs(error).max() < 2 * np.pi * 200 * 2.5e-4 * 0.3  # 0.25 ms of the tone's steepest slope
        assert stream.latency_s == stream.latency_samples / rate
        assert stream.latency.total_s == pytest.approx(stream.latency_s, abs=1e-9)

    @pytest.mark.parametrize("rate", RATES)
    def test_a_sweep_has_no_seam(self, delay: Denoiser, rate: int) -> None:
        """The curvature never exceeds that of the sweep; a step of a hundredth of its peak would."""
        time = np.arange(4 * rate) / rate
        top_hz = 0.4 * min(rate, 16_000)
        sweep = (0.3 * np.sin(2 * np.pi * (50 * time + (top_hz - 50) / 8 * time**2))).astype(np.float32)[None]
        stream = delay.stream(rate)
        found = sent(stream, sweep, [rate // 100, 13, 2 * rate // 25])[0, stream.latency_samples :]
        curvature = np.abs(np.diff(found, 2))[rate // 10 : -rate // 10]
        frequency_hz = (50 + (top_hz - 50) / 4 * time)[1:-1][rate // 10 : -rate // 10]
        expected = 0.3 * 2 * (1 - np.cos(2 * np.pi * frequency_hz / rate))
        assert (curvature - expected).max() < 0.003
        assert curvature[-rate // 20 :].max() > 0.95 * expected[-rate // 20]

    @settings(max_examples=40, deadline=None)
    @given(
        rate=st.sampled_from([8_000, 8_001, 11_025, 12_000, 44_056, 44_100, 47_999, 48_000, 191_999])
        | st.integers(8_000, 192_000),
        channels=st.integers(1, 3),
        sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=5).filter(any),
        step_s=st.sampled_from([0.02, 0.1]),
    )
    def test_any_rate_and_chunks_give_as_many_samples_and_the_same_delay(
        self, delay: Denoiser, rate: int, channels: int, sizes: list[int], step_s: float
    ) -> None:
        time = np.arange(rate // 2) / rate
        tone = (0.3 * np.sin(2 * np.pi * 300 * time) * np.sin(2 * np.pi * time)).astype(np.float32)
        audio = np.stack([tone / (channel + 1) for channel in range(channels)])
        stream = delay.stream(rate, channels=channels, step_s=step_s, gain_db=0)
        found = sent(stream, audio, sizes)[:, stream.latency_samples :]
        assert found.shape == audio.shape
        assert np.abs(found - audio).max() < 1e-3
        assert stream.latency_s < 0.34 + step_s + 0.018

    def test_the_parts_of_the_latency(self, denoiser: Denoiser) -> None:
        latency = denoiser.stream(16_000, step_s=0.04).latency
        assert latency.lookahead_s == pytest.approx(0.14 * denoiser.model.unets)
        assert latency.half_frame_s == pytest.approx(0.02)
        assert latency.step_s == pytest.approx(0.04 - 1 / 16_000)
        assert latency.resampling_s == pytest.approx(0, abs=1e-12)


class TestTogether:
    def test_streams_together_give_what_they_give_alone(self, denoiser: Denoiser) -> None:
        """Streams of several rates and channels join and leave, each with its own chunks."""
        kinds = [(16_000, 1), (16_000, 2), (48_000, 1), (8_000, 1)]
        signals = [noise(1.0, rate, channels, seed=i) for i, (rate, channels) in enumerate(kinds)]
        alone = [sent(denoiser.stream(r, channels=c), s, [r // 50]) for (r, c), s in zip(kinds, signals, strict=True)]
        streams = [denoiser.stream(rate, channels=channels) for rate, channels in kinds]
        parts: list[list[np.ndarray]] = [[] for _ in kinds]
        for turn in range(70):
            # Stream i is there from turn 5 i on, for fifty turns.
            there = [i for i in range(4) if 5 * i <= turn < 5 * i + 50]
            chunks = []
            for i in there:
                size = kinds[i][0] // 50
                chunks.append(signals[i][:, (turn - 5 * i) * size :][:, :size])
            for i, out in zip(there, process_streams([streams[i] for i in there], chunks), strict=True):
                parts[i].append(out)
        for i, stream in enumerate(streams):
            together = np.concatenate([*parts[i], stream.flush()], axis=1)
            assert together.shape == alone[i].shape
            assert np.abs(together - alone[i]).max() <= 1e-5 * np.abs(alone[i]).max()

    def test_streams_that_cannot_be_combined(self, denoiser: Denoiser, delay: Denoiser) -> None:
        stream = denoiser.stream(16_000)
        chunk = noise(0.02)
        with pytest.raises(ValueError, match="got 1 streams and 2 chunks"):
            process_streams([stream], [chunk, chunk])
        with pytest.raises(ValueError, match="a stream is given twice"):
            process_streams([stream, stream], [chunk, chunk])
        with pytest.raises(ValueError, match="must belong to one Denoiser"):
            process_streams([stream, delay.stream(16_000)], [chunk, chunk])

    def test_a_bad_chunk_leaves_all_streams_unchanged(self, denoiser: Denoiser) -> None:
        audio = noise(0.6)
        expected = sent(denoiser.stream(16_000), audio, [640])
        good, bad = denoiser.stream(16_000), denoiser.stream(16_000)
        parts = [good.process(audio[:, :3200])]
        with pytest.raises(AudioError, match="NaN"):
            process_streams([good, bad], [audio[:, 3200:6400], np.full((1, 10), np.nan, np.float32)])
        parts += [good.process(audio[:, 3200:]), good.flush()]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)


class TestForms:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
    def test_dtype_and_shape_are_kept(self, delay: Denoiser, dtype: type) -> None:
        chunk = (1000 * np.ones(500)).astype(dtype) if np.dtype(dtype).kind == "i" else np.full(500, 0.1, dtype)
        out = delay.stream(16_000).process(chunk)
        assert out.dtype == dtype
        assert out.shape == (500,)

    def test_bytes_are_interleaved_16_bit_samples(self, delay: Denoiser) -> None:
        rng = np.random.default_rng(0)
        samples = rng.integers(-20_000, 20_000, (9_000, 2)).astype(np.int16)
        stream = delay.stream(16_000, channels=2)
        out = b"".join(stream.process(samples[i : i + 450].tobytes()) for i in range(0, 9_000, 450))
        found = np.frombuffer(out, np.int16).reshape(-1, 2)
        late = stream.latency_samples
        assert np.abs(found[late:].astype(int) - samples[:-late]).max() <= 1
        with pytest.raises(AudioError, match=r"5 bytes are not a whole number of 16-bit samples in 2 channel\(s\)"):
            stream.process(b"12345")

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array("h", data)])
    @pytest.mark.parametrize("samples", [1, 441, 960])
    def test_buffers_of_16_bit_samples(self, delay: Denoiser, kind: Callable, samples: int) -> None:
        """Items of a buffer may be bytes or samples; odd numbers of samples are fine."""
        pcm = np.random.default_rng(0).integers(-20_000, 20_000, 2 * samples).astype(np.int16)
        stream = delay.stream(16_000)
        expected = delay.stream(16_000)
        for half in (pcm[:samples], pcm[samples:]):
            assert stream.process(kind(half.tobytes())) == expected.process(half).tobytes()

    def test_a_memoryview_of_16_bit_integers(self, delay: Denoiser) -> None:
        pcm = np.random.default_rng(0).integers(-20_000, 20_000, (882, 1)).astype(np.int16)
        assert len(memoryview(pcm[:441])) == 441
        expected = delay.stream(16_000).process(pcm[:441, 0]).tobytes()
        assert delay.stream(16_000).process(memoryview(pcm[:441])) == expected
        every_second = delay.stream(16_000).process(pcm[::2, 0].copy()).tobytes()
        assert delay.stream(16_000).process(memoryview(pcm)[::2]) == every_second

    @pytest.mark.parametrize("chunk", [memoryview(np.zeros(9, np.float64)), array("d", [0.0])])
    def test_other_buffers_are_an_error(self, delay: Denoiser, chunk: object) -> None:
        message = (
            "a buffer must hold bytes, 16-bit integers or 32-bit floats, got items of format 'd': pass a numpy array"
        )
        with pytest.raises(AudioError, match=message):
            delay.stream(16_000).process(chunk)

    def test_an_empty_chunk_gives_an_empty_one(self, denoiser: Denoiser) -> None:
        stream = denoiser.stream(16_000)
        assert stream.process(np.zeros(0, np.float32)).shape == (0,)
        assert stream.process(b"") == b""

    def test_silence_stays_silence(self, denoiser: Denoiser) -> None:
        assert not sent(denoiser.stream(16_000), np.zeros((1, 8_000), np.float32), [500]).any()

    @pytest.mark.parametrize(
        ("chunk", "message"),
        [
            (np.full(100, np.nan, np.float32), "NaN or infinity"),
            (np.full(100, np.inf), "NaN or infinity"),
            (np.zeros((2, 100), np.float32), r"has 1 channel\(s\), the chunk has 2"),
            (np.zeros(100, np.uint8), "float32, float64, int16 or int32"),
            ([0.0, 0.1], "must be a numpy array"),
        ],
        ids=["nan", "inf", "channels", "dtype", "list"],
    )
    def test_a_bad_chunk_leaves_the_stream_unchanged(self, denoiser: Denoiser, chunk: object, message: str) -> None:
        audio = noise(0.4)
        expected = sent(denoiser.stream(16_000), audio, [1000])
        stream = denoiser.stream(16_000)
        parts = [stream.process(audio[:, :1000])]
        with pytest.raises(AudioError, match=message):
            stream.process(chunk)
        parts += [stream.process(audio[:, 1000:]), stream.flush()]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"sample_rate": 4_000}, AudioError, "8000 to 192000 Hz"),
            ({"sample_rate": 16_000.5}, AudioError, "whole number"),
            ({"channels": 0}, AudioError, "1 to 64 channels"),
            ({"step_s": 0.03}, ValueError, r"multiple of 0\.02 s"),
            ({"step_s": 5.0}, ValueError, "up to 1 s"),
            ({"gain_db": np.inf}, ValueError, "gain_db"),
            ({"lookahead_s": np.inf}, ValueError, "lookahead_s must be a multiple"),
            ({"lookahead_s": np.nan}, ValueError, "lookahead_s must be a multiple"),
        ],
    )
    def test_bad_arguments(self, delay: Denoiser, options: dict, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            delay.stream(**({"sample_rate": 16_000} | options))


class TestLife:
    def test_after_flush_it_requires_a_reset(self, denoiser: Denoiser) -> None:
        audio = noise(0.5)
        stream = denoiser.stream(16_000)
        first = sent(stream, audio, [400])
        for call in (lambda: stream.process(audio), stream.flush):
            with pytest.raises(ValueError, match=r"this stream was flushed: call reset\(\) or create a new stream"):
                call()
        stream.reset()
        np.testing.assert_array_equal(sent(stream, audio, [400]), first)

    def test_two_threads_in_one_stream_are_an_error(self) -> None:
        backend = DelayingBackend()
        stream = Denoiser(backend=backend).stream(16_000)
        errors: list[Exception] = []

        def enter() -> None:
            try:
                stream.process(np.zeros(10, np.float32))
            except RuntimeError as error:
                errors.append(error)

        backend.gate.clear()
        first = threading.Thread(target=stream.process, args=[noise(0.02)])
        first.start()
        assert backend.entered.wait(60)
        second = threading.Thread(target=enter)
        second.start()
        second.join()
        backend.gate.set()
        first.join()
        assert [str(error) for error in errors] == [
            "this stream is in use by another thread; create one stream per signal"
        ]
        stream.process(np.zeros(10, np.float32))  # the first call has ended

    def test_an_engine_that_fails_leaves_the_state(self) -> None:
        backend = DelayingBackend()
        with Denoiser(backend=backend) as denoiser:
            stream = denoiser.stream(16_000)
            stream.process(noise(0.2))
            before_s = stream.statistics.duration_s
            backend.broken = True
            with pytest.raises(EngineError, match="the engine returned NaN or infinity for finite audio"):
                stream.process(noise(0.2))
            assert stream.statistics.duration_s == before_s
            backend.broken = False
            stream.reset()
            assert np.isfinite(stream.process(noise(0.2))).all()

    @pytest.mark.parametrize("rate", [16_000, 44_100])
    def test_after_a_failure_the_delay_is_what_it_was(self, rate: int) -> None:
        """Of a call that failed there is no output. What comes after it is in its place in time, to the end."""
        backend = DelayingBackend()
        with Denoiser(backend=backend) as denoiser:
            audio = noise(1.0, rate, channels=2)
            expected = sent(denoiser.stream(rate, channels=2, gain_db=0), audio, [rate // 50])
            stream, other = denoiser.stream(rate, channels=2, gain_db=0), denoiser.stream(16_000)
            for number, first in enumerate(range(0, audio.shape[1], rate // 50)):
                chunk = audio[:, first : first + rate // 50]
                backend.broken = number in {7, 20, 21}
                if backend.broken:
                    with pytest.raises(EngineError, match="NaN"):
                        process_streams([other, stream], [noise(0.02), chunk])
                else:
                    found = stream.process(chunk)
                    np.testing.assert_array_equal(found, expected[:, first : first + chunk.shape[1]])
            backend.broken = True
            with pytest.raises(EngineError, match="NaN"):
                stream.process(noise(0.05, rate, channels=2))
            backend.broken = False
            stream.process(np.zeros((2, 0), np.float32))
            assert stream.flush().shape == (2, stream.latency_samples)

    def test_a_backend_without_streams_is_an_error(self) -> None:
        denoiser = Denoiser(backend=FunctionBackend())
        with pytest.raises(BackendUnavailable, match="does not run streams"):
            denoiser.stream(16_000)

    def test_a_closed_denoiser_opens_no_streams(self) -> None:
        denoiser = Denoiser(backend=DelayingBackend())
        denoiser.close()
        with pytest.raises(ValueError, match="closed"):
            denoiser.stream(16_000)


class TestHighBand:
    @pytest.mark.parametrize("rate", [16_001, 22_050, 44_100, 48_000, 96_000])
    def test_an_engine_that_changes_nothing_gives_back_the_signal(self, delay: Denoiser, rate: int) -> None:
        """Both bands, through the cross-over, and with no more delay than without the upper one."""
        audio = noise(0.5, rate)[0]
        stream = delay.stream(rate)
        out = np.concatenate([stream.process(audio), stream.flush().reshape(-1)])
        assert stream.latency_samples == delay.stream(rate, high_band="drop").latency_samples
        np.testing.assert_allclose(out[stream.latency_samples :], audio, atol=1e-5)

    def test_chunks_do_not_change_a_bit(self, denoiser: Denoiser) -> None:
        audio = noise(0.4, 48_000)[0]
        whole = denoiser.stream(48_000).process(audio)
        for size in (1_023, 480):
            stream = denoiser.stream(48_000)
            parts = [stream.process(audio[at : at + size]) for at in range(0, len(audio), size)]
            np.testing.assert_array_equal(np.concatenate(parts), whole)

    def test_it_can_be_dropped(self, delay: Denoiser) -> None:
        audio = noise(0.5, 48_000)[0]
        power = {}
        for mode in ("follow", "drop"):
            out = delay.stream(48_000, high_band=mode).process(audio)
            power[mode] = np.mean(np.abs(np.fft.rfft(out)[np.fft.rfftfreq(len(out), 1 / 48_000) > 9_000]) ** 2)
        assert power["drop"] < 1e-4 * power["follow"]
        with pytest.raises(ValueError, match="high_band must be one of"):
            delay.stream(48_000, high_band="up")


class TestLevel:
    def test_the_attenuation_limit_mixes_in_the_input(self, delay: Denoiser) -> None:
        """The input is aligned: if the engine changes nothing, no limit, nor a change of it, has an effect."""
        audio = noise(1.0, 48_000)
        expected = sent(delay.stream(48_000), audio, [960])
        stream = delay.stream(48_000)
        stream.attenuation_limit_db = 6.0
        half = stream.process(audio[:, :24_000])
        stream.attenuation_limit_db = 3.0
        found = np.concatenate([half, stream.process(audio[:, 24_000:]), stream.flush()], axis=1)
        assert np.abs(found - expected).max() < 1e-6
        with pytest.raises(ValueError, match="0 or more"):
            stream.attenuation_limit_db = -1.0

    def test_a_change_of_the_limit_fades_above_8_khz_as_below(self) -> None:
        """A model that leaves nothing: what comes out is the share of the input, in both bands."""
        rate = 48_000
        audio = noise(1.0, rate)
        with Denoiser(backend=DelayingBackend(gain=0.0)) as silent:
            stream = silent.stream(rate, gain_db=0)
            stream.attenuation_limit_db = 20.0
            half = stream.process(audio[:, :24_000])
            stream.attenuation_limit_db = 0.0
            found = np.concatenate([half, stream.process(audio[:, 24_000:]), stream.flush()], axis=1)
        found = found[0, stream.latency_samples :]
        shares = []
        for low, high in ((1_000, 7_000), (9_000, 20_000)):
            hz = np.fft.rfftfreq(rate, 1 / rate)
            inside = (hz > low) & (hz < high)
            bands = [np.fft.irfft(np.fft.rfft(x) * inside) for x in (found, audio[0])]
            products = [(bands[0] * bands[1]), bands[1] ** 2]
            shares.append(np.divide(*[product.reshape(-1, 240).sum(axis=1) for product in products]))
        below, above = shares
        assert below[:60] == pytest.approx(0.1, abs=0.02)
        assert below[-60:] == pytest.approx(1.0, abs=0.02)
        assert np.abs(below - above)[5:-5].max() < 0.12
        assert ((below > 0.2) & (below < 0.9)).sum() >= 2  # it fades

    def test_a_limit_of_0_db_returns_the_input(self, denoiser: Denoiser) -> None:
        audio = noise(0.5)
        stream = denoiser.stream(16_000)
        stream.attenuation_limit_db = 0.0
        np.testing.assert_allclose(sent(stream, audio, [333])[:, stream.latency_samples :], audio, atol=1e-7)

    def test_the_gain_settles_where_the_whole_signals_is(self) -> None:
        from frcrn_accel.audio import measure_levels

        audio = noise(8.0) * np.repeat([0.2, 1.0] * 4, 16_000)
        level = RunningLevel.silent(1, 1e9)
        for first in range(0, audio.shape[1], 320):
            gains, level = level.update(audio[:, None, first : first + 320])
        _, expected, _ = measure_levels(lambda: [audio], 1)
        assert 20 * abs(np.log10(gains[:, 0] / expected)) < 1.5

    def test_the_gain_does_not_depend_on_the_number_of_hops_per_update(self) -> None:
        hops = noise(1.0, channels=2).reshape(2, -1, 320) * np.array([1, 0.01])[:, None, None]
        hops[1, :3] = 0
        start = RunningLevel.silent(2, 20)
        expected = []
        level = start
        for hop in range(hops.shape[1]):
            gains, level = level.update(hops[:, hop : hop + 1])
            expected.append(gains[:, 0])
        at_once, after = start.update(hops)
        np.testing.assert_array_equal(at_once, np.transpose(expected))
        assert (at_once[1, :3] == 1).all()
        np.testing.assert_array_equal(after.update(hops)[0], level.update(hops)[0])
        np.testing.assert_array_equal(start.update(hops)[0], at_once)  # it was not changed

    @pytest.mark.parametrize("rate", [16_000, 48_000])
    def test_an_offset_changes_little_of_what_is_heard(
        self, denoiser: Denoiser, noisy: np.ndarray, rate: int
    ) -> None:
        from frcrn_accel.audio import fit_length, resample

        audio = noisy[None, :40_000]
        audio = np.concatenate(list(fit_length(resample([audio], 16_000, rate, 1), 5 * rate // 2, 1)), axis=1)
        streams = [denoiser.stream(rate) for _ in range(2)]
        plain, moved = (
            sent(stream, x, [rate // 50]) for stream, x in zip(streams, (audio, audio + 0.3), strict=True)
        )
        late = slice(streams[0].latency_samples + rate, -rate // 10)
        assert si_sdr_db(plain[0, late], moved[0, late]) > 25

    def test_a_loud_and_a_quiet_stream_sound_alike(self, denoiser: Denoiser) -> None:
        audio = noise(1.0)
        quiet, loud = (sent(denoiser.stream(16_000), audio * gain, [320]) / gain for gain in (0.01, 1.0))
        assert np.abs(quiet - loud).max() < 1e-3 * np.abs(loud).max()


class TestAveraging:
    def test_the_shares_are_those_of_a_running_mean(self) -> None:
        """Applied step by step, they give the mean of all values so far, for every lag."""
        values = np.random.default_rng(0).standard_normal(30)
        means = np.zeros(3)
        first = 0
        for count in (1, 4, 2, 8, 5):
            rows = shares(Averaging(horizon_s=None), 0, first, count, 3, 50)
            assert rows.shape == (3, count, count + 1)
            for lag in range(3):
                number = first + np.arange(count) - lag
                new = np.where(number >= 0, values[np.maximum(number, 0)], 99.0)
                running = rows[lag] @ np.concatenate([[means[lag]], new])
                for i, n in enumerate(number):
                    if n >= 0:
                        assert running[i] == pytest.approx(values[: n + 1].mean(), abs=1e-5)
                means[lag] = running[-1]
            first += count

    def test_a_horizon_forgets(self) -> None:
        rows = shares(Averaging(horizon_s=0.2), 0, 1000, 2, 1, 50)[0]
        np.testing.assert_allclose(rows, [[0.9, 0.1, 0], [0.81, 0.09, 0.1]], atol=1e-6)

    def test_a_start_weighs_in_and_hold_holds(self) -> None:
        np.testing.assert_allclose(shares(Averaging(), 0.06, 0, 1, 1, 50)[0], [[0.75, 0.25]])
        np.testing.assert_allclose(shares(Averaging(hold=True), 0.06, 5, 1, 1, 50)[0], [[1, 0]])

    def test_bad_rules(self, denoiser: Denoiser) -> None:
        with pytest.raises(ValueError, match=r"horizon_s must be at least 0\.02 s"):
            Averaging(horizon_s=0.0)
        with pytest.raises(ValueError, match="start_s must be 0 s or more"):
            Averaging(start_s=-1.0)
        with pytest.raises(ValueError, match=r"its means are \(1, 5\), expected \(1, 1408\)"):
            denoiser.stream(16_000, averaging=Averaging(start=Statistics(np.zeros((1, 5), np.float32), 1.0)))

    def test_a_stream_starts_with_what_is_typical(self, denoiser: Denoiser) -> None:
        """The start counts for a second, has means in every layer, and can be left out."""
        typical = denoiser.stream(16_000).statistics
        assert typical.duration_s == 1.0
        of_layers = np.split(typical.means, 22, axis=1)  # two U-Nets of eleven
        assert [mean.shape for mean in of_layers] == [(1, 64)] * 22
        assert all(np.abs(mean).max() > 0 for mean in of_layers)
        nothing = denoiser.stream(16_000, averaging=Averaging(start_s=0)).statistics
        assert nothing.duration_s == 0

    def test_the_means_of_a_stream_can_start_another(self, denoiser: Denoiser) -> None:
        """A stream that holds the statistics of another still has them at its end."""
        stream = denoiser.stream(16_000)
        sent(stream, noise(1.0), [320])
        statistics = stream.statistics
        assert statistics.duration_s == pytest.approx(1 + 1 + stream.latency_s - 0.02, abs=0.01)
        other = denoiser.stream(16_000, averaging=Averaging(start=statistics, hold=True))
        sent(other, noise(0.5, seed=1), [320])
        np.testing.assert_array_equal(other.statistics.means, statistics.means)


@pytest.mark.parametrize("make", [OrtBackend, lambda: _openvino("fp32"), lambda: _openvino("bf16")])
def test_engines_agree(denoiser: Denoiser, make: Callable[[], Backend]) -> None:
    audio = noise(1.0)
    expected = sent(denoiser.stream(16_000), audio, [320])
    backend = make()
    with Denoiser(backend=backend) as other:
        found = sent(other.stream(16_000), audio, [320])
        # The means of a stream on one engine can start a stream on another.
        begun = other.stream(16_000, averaging=Averaging(start=denoiser.stream(16_000).statistics))
        np.testing.assert_allclose(begun.statistics.means, denoiser.stream(16_000).statistics.means)
    tolerance = 5e-2 if backend.precision == "bf16" else 1e-4
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("name", "lookahead_s"), [("ort-dynamic-int8", None), ("ort-static-int8", 0.12)])
def test_int8_streams_sound_like_fp32_ones(denoiser: Denoiser, name: str, lookahead_s: float | None) -> None:
    """On noisy speech; the quality gate requires 30 dB for the whole pass."""
    pytest.importorskip("onnx")
    _, speech, rate = next(read_gate_audio())
    speech = speech[:, : 3 * rate]
    expected = sent(denoiser.stream(rate, lookahead_s=lookahead_s), speech, [320])
    try:
        other = Denoiser(backend=name, threads=1)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with other:
        found = sent(other.stream(rate, lookahead_s=lookahead_s), speech, [320])
    assert 10 * np.log10(np.mean(expected**2) / np.mean((found - expected) ** 2)) > 25


@pytest.mark.parametrize("lookahead_s", [None, 0.12, 0])
def test_training_for_streams_computes_what_a_stream_does(denoiser: Denoiser, lookahead_s: float | None) -> None:
    torch = pytest.importorskip("torch")
    from frcrn_accel.network.module import build_network
    from frcrn_accel.network.operators import Operators
    from frcrn_accel.train.running import RunningMeans

    audio = noise(1.0)
    averaging = Averaging(horizon_s=None, start_s=0)
    stream = denoiser.stream(16_000, averaging=averaging, gain_db=0, lookahead_s=lookahead_s)
    found = sent(stream, audio, [320])[:, stream.latency_samples :]
    network = build_network(read_weights(denoiser.model_path), RunningMeans(Operators(), start_s=0))
    if lookahead_s is not None:
        network.lookahead = round(lookahead_s / 0.04)
    # Before a stream, and after it, there is silence.
    padded = np.pad(audio, ((0, 0), (320, 64 * 320)))
    with torch.inference_mode():
        expected = network(torch.from_numpy(padded)).numpy()[:, 320 : 320 + audio.shape[1]]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_stream_of_noisy_speech_is_near_the_whole_pass(denoiser: Denoiser) -> None:
    """With default options the stream has to find its level and means."""
    scores = []
    for clean, noisy, rate in islice(read_gate_audio(), None, None, 2):
        stream = denoiser.stream(rate, step_s=0.1)
        found = sent(stream, noisy, [1_600])[:, stream.latency_samples :]
        scores.append([si_sdr_db(clean[0], audio[0]) for audio in (noisy, denoiser(noisy, rate), found)])
    noisy_db, whole_db, stream_db = np.mean(scores, axis=0)
    assert whole_db > noisy_db + 2
    assert stream_db > whole_db - 1


def test_the_model_for_streams_looks_ahead_less_and_is_better_at_that(denoiser: Denoiser) -> None:
    pytest.importorskip("onnx")
    clips = list(read_gate_audio())[::2]
    with Denoiser(LIVE_MODEL, backend="ort") as live:
        assert live.stream(16_000).latency.lookahead_s == pytest.approx(0.08)
        means_db = []
        for model in (denoiser, live):
            scores_db = []
            for clean, noisy, rate in clips:
                stream = model.stream(rate, step_s=0.1, lookahead_s=0.08)
                found = sent(stream, noisy, [1_600])[:, stream.latency_samples :]
                scores_db.append(si_sdr_db(clean[0], found[0]))
            means_db.append(np.mean(scores_db))
    assert means_db[1] > means_db[0] + 0.5


def read_gate_audio() -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield clean and noisy speech from the package, and its rate."""
    for clip in read_clips(GATE_AUDIO, 16_000):
        if clip.clean is not None:
            yield clip.clean[None], clip.noisy[None], 16_000


def error_with_held_means(denoiser: Denoiser, audio: np.ndarray, step_s: float, sizes: Sequence[int]) -> float:
    """Return the error of a stream with the means of the whole pass and gain 1, relative to the whole pass's peak."""
    samples = audio.shape[1]
    padded = np.pad(audio, ((0, 0), (320, -samples % 320 + 16 * 320)))
    session = OrtBackend().load(find_model(denoiser.model_path), threads=1)
    expected = session.run(padded)[:, 320 : 320 + samples]
    averaging = Averaging(start=whole_pass_means(denoiser, padded), hold=True)
    stream = denoiser.stream(16_000, step_s=step_s, averaging=averaging, gain_db=0)
    found = sent(stream, audio, sizes)[:, stream.latency_samples :]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def whole_pass_means(denoiser: Denoiser, audio: np.ndarray) -> Statistics:
    """Return the means of all squeeze-and-excitation layers over the audio, computed with PyTorch."""
    torch = pytest.importorskip("torch")
    from frcrn_accel.network.module import build_network
    from frcrn_accel.network.operators import Operators

    means = []  # in the order in which a signal passes the layers, which is that of the states

    class Recording(Operators):
        def means(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x, found = super().means(x)
            means.append(found.numpy())
            return x, found

    network = build_network(read_weights(denoiser.model_path), Recording())
    with torch.inference_mode():
        network(torch.from_numpy(audio))
    return Statistics(np.concatenate([mean.reshape(len(audio), -1) for mean in means], axis=1), 1.0)


def _openvino(precision: str) -> Backend:
    pytest.importorskip("openvino")
    from frcrn_accel.backends.openvino import OpenVinoBackend

    if precision not in (OpenVinoBackend.default_precision(), "fp32"):
        pytest.skip("this CPU does not compute in bfloat16")
    return OpenVinoBackend(precision)
