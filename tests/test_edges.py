"""Streams and denoisers at their edges: forms of audio, closing, pickling, changes while they run."""

import copy
import ctypes
import multiprocessing
import pickle
import threading
import warnings
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delaying import DelayingBackend
from frcrn_accel import AudioError, Denoiser
from frcrn_accel.adapters.background import BackgroundStream
from frcrn_accel.backends import StepSession
from frcrn_accel.models import DEFAULT_MODEL, ModelFile, find_model
from frcrn_accel.pcm import from_pcm
from frcrn_accel.streaming import Averaging, Statistics, process_streams
from frcrn_accel.testing import FunctionBackend
from waiting import until


@pytest.fixture(scope="module")
def delay() -> Iterator[Denoiser]:
    with Denoiser(backend=DelayingBackend()) as denoiser:
        yield denoiser


def signal(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    audio = 0.1 * np.random.default_rng(0).standard_normal(shape)
    kind = np.dtype(dtype)
    return (audio * np.iinfo(kind).max).astype(kind) if kind.kind == "i" else audio.astype(kind)


class TestFlush:
    @given(
        dtype=st.sampled_from(["f2", "f4", "f8", "i2", "i4", ">i2", ">i4", ">f2", ">f4", ">f8"]),
        channels=st.sampled_from([None, 1, 2]),
        rate=st.sampled_from([8_000, 16_000, 37_800, 44_100]),
        sizes=st.lists(st.integers(0, 900), min_size=1, max_size=4),
    )
    def test_it_joins_what_process_gave(
        self, delay: Denoiser, dtype: str, channels: int | None, rate: int, sizes: list[int]
    ) -> None:
        audio = signal((*([] if channels is None else [channels]), sum(sizes)), dtype)
        stream = delay.stream(rate, channels=channels or 1)
        chunks = np.split(audio, np.cumsum(sizes)[:-1], axis=-1)
        whole = np.concatenate([*map(stream.process, chunks), stream.flush()], axis=-1)
        assert whole.dtype == audio.dtype.newbyteorder("=")
        assert whole.shape == (*audio.shape[:-1], audio.shape[-1] + stream.latency_samples)
        if rate == 16_000:
            exact = {"i2": 1, "i4": 300, "f2": 1e-3}.get(dtype.removeprefix(">"), 1e-6)
            error = whole[..., stream.latency_samples :].astype(float) - audio
            assert np.abs(error).max(initial=0) <= exact

    def test_bytes(self, delay: Denoiser) -> None:
        pcm = signal((2_000, 2), "i2")
        stream = delay.stream(16_000, channels=2)
        whole = b"".join([stream.process(pcm.tobytes()), stream.flush()])
        found = np.frombuffer(whole, np.int16).reshape(-1, 2)[stream.latency_samples :]
        assert np.abs(found.astype(int) - pcm).max() <= 1

    def test_a_tensor(self, delay: Denoiser) -> None:
        torch = pytest.importorskip("torch")
        stream = delay.stream(16_000)
        whole = torch.cat([stream.process(torch.zeros(700, dtype=torch.int16)), stream.flush()])
        assert whole.dtype == torch.int16
        assert whole.shape == (700 + stream.latency_samples,)

    def test_the_form_is_that_of_the_last_good_chunk_of_this_signal(self, delay: Denoiser) -> None:
        stream = delay.stream(16_000)
        stream.process(np.zeros(10, np.float64))
        stream.process(np.zeros(10, np.int16))
        with pytest.raises(AudioError, match="NaN"):
            stream.process(np.full((1, 10), np.nan))
        rest = stream.flush()
        assert (rest.dtype, rest.ndim) == (np.int16, 1)
        stream.reset()
        rest = stream.flush()
        assert (rest.dtype, rest.shape) == (np.float32, (1, stream.latency_samples))


class FunctionBackendByClass(FunctionBackend):
    """A backend that the class opens, which gives it no function."""

    def __init__(self, precision: str | None = None) -> None:
        super().__init__(precision=precision)


class CalibratingBackend(FunctionBackendByClass):
    """A backend that takes a folder of recordings."""

    calibrates = True

    def __init__(self, precision: str | None = None, calibration: str | Path | None = None) -> None:
        super().__init__(precision)
        self.calibration = calibration


class Recordings:
    """A dataset of PyTorch that denoises what it holds."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> np.ndarray:
        return self.denoiser((number + 1) * signal((4_000,), "f4"), 16_000)


class Slow(DelayingBackend):
    """A backend that makes the step with look-ahead 0 while its gate is open."""

    def load_step(self, model: ModelFile, threads: int, lookahead: int = 7) -> StepSession:
        if lookahead == 0:
            self.entered.set()
            assert self.gate.wait(60)
        return super().load_step(model, threads, lookahead)


def refuses(denoiser: Denoiser) -> bool:
    """Return whether a denoiser says that it is closed."""
    try:
        denoiser(np.zeros(320, np.float32), 16_000)
    except ValueError as error:
        return "this Denoiser is closed" in str(error)
    return False


class TestClosing:
    def test_it_waits_for_a_stream_of_another_thread(self) -> None:
        backend = DelayingBackend()
        denoiser = Denoiser(backend=backend)
        stream = denoiser.stream(16_000)
        backend.gate.clear()
        with ThreadPoolExecutor(2) as pool:
            result = pool.submit(stream.process, np.ones(640, np.float32))
            assert backend.entered.wait(60)
            closed = pool.submit(denoiser.close)
            until(lambda: refuses(denoiser), bool)
            with pytest.raises(FutureTimeoutError):
                closed.result(0.05)
            backend.gate.set()
            assert result.result(60).shape == (640,)
            closed.result(60)

    def test_it_waits_for_a_call_of_another_thread(self) -> None:
        entered, gate = threading.Event(), threading.Event()

        def slowly(audio: np.ndarray) -> np.ndarray:
            entered.set()
            assert gate.wait(60)
            return audio

        denoiser = Denoiser(backend=FunctionBackend(slowly))
        audio = signal((1_000,), "f4")
        with ThreadPoolExecutor(2) as pool:
            result = pool.submit(denoiser, audio, 16_000)
            assert entered.wait(60)
            closed = pool.submit(denoiser.close)
            gate.set()
            np.testing.assert_allclose(result.result(60), audio, atol=1e-6)
            closed.result(60)
        denoiser.close()

    def test_a_call_cannot_close_what_it_uses(self) -> None:
        denoiser = Denoiser(backend=FunctionBackend(lambda audio: denoiser.close() or audio))
        with pytest.raises(RuntimeError, match="close it after the call"):
            denoiser(np.ones(320, np.float32), 16_000)
        denoiser.close()

    def test_streams_of_a_closed_denoiser(self) -> None:
        denoiser = Denoiser(backend=DelayingBackend())
        stream = denoiser.stream(16_000)
        denoiser.close()
        for call in (lambda: stream.process(np.zeros(1, np.float32)), stream.flush, stream.reset):
            with pytest.raises(ValueError, match="this Denoiser is closed"):
                call()

    def test_making_a_step_does_not_block_other_lookaheads(self) -> None:
        pytest.importorskip("onnx")
        backend = Slow()
        with Denoiser(backend=backend) as denoiser, ThreadPoolExecutor(1) as pool:
            denoiser.stream(16_000)
            backend.gate.clear()
            first = pool.submit(denoiser.stream, 16_000, lookahead_s=0.0)
            assert backend.entered.wait(60)
            denoiser.stream(16_000)
            backend.gate.set()
            first.result(60)


class TestPickling:
    def test_a_pool_of_new_processes(self) -> None:
        pytest.importorskip("onnxruntime")
        audio = signal((8_000,), "f4")
        with Denoiser(backend="ort", threads=1, attenuation_limit_db=6) as denoiser:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found = pool.submit(denoiser, audio, 16_000).result(120)
            np.testing.assert_allclose(found, denoiser(audio, 16_000), atol=1e-6)

    @pytest.mark.parametrize("is_path", [False, True])
    def test_it_keeps_the_options(self, is_path: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """And those changed since; a path of a model means the same in another folder."""
        model: str | Path = DEFAULT_MODEL
        if is_path:
            path = find_model(DEFAULT_MODEL).path
            monkeypatch.chdir(path.parent)
            model = Path(path.name)
        denoiser = Denoiser(model, backend=FunctionBackendByClass, batch_size=3)
        denoiser.attenuation_limit_db = 12.0
        monkeypatch.chdir(tmp_path)
        other = pickle.loads(pickle.dumps(denoiser))
        assert other.model == denoiser.model
        assert (other.options.batch_size, other.attenuation_limit_db, other.backend) == (3, 12.0, "function")

    def test_a_folder_of_recordings_means_the_same_in_another_folder(self, monkeypatch, tmp_path: Path) -> None:
        (tmp_path / "calls").mkdir()
        monkeypatch.chdir(tmp_path)
        denoiser = Denoiser(backend=CalibratingBackend, calibration="calls")
        monkeypatch.chdir("/")
        assert pickle.loads(pickle.dumps(denoiser)).options.calibration == tmp_path / "calls"

    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_data_loader(self, workers: int) -> None:
        """Of PyTorch, whose worker is a new process: it opens the model for itself."""
        pytest.importorskip("onnxruntime")
        data = pytest.importorskip("torch.utils.data")
        with Denoiser(backend="ort", threads=1, attenuation_limit_db=6) as denoiser:
            recordings = Recordings(denoiser)
            expected = [recordings[number] for number in range(4)]
            context = "spawn" if workers else None
            loader = data.DataLoader(recordings, batch_size=2, num_workers=workers, multiprocessing_context=context)
            found = np.concatenate([batch.numpy() for batch in loader])
        np.testing.assert_allclose(found, expected, atol=1e-6)

    @pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
    def test_a_copy_is_open_when_the_original_is_closed(self, copier: Callable) -> None:
        denoiser = Denoiser(backend=FunctionBackendByClass, high_band="drop")
        other = copier(denoiser)
        denoiser.close()
        assert other(np.ones(9, np.float32), 16_000).shape == (9,)
        assert other.high_band == "drop"

    def test_what_cannot_be_pickled(self) -> None:
        with pytest.raises(TypeError, match="an instance of a backend cannot be pickled: open one in each process"):
            pickle.dumps(Denoiser(backend=FunctionBackend()))
        wrapped = Denoiser(backend=FunctionBackendByClass, wrap_session=lambda session: session)
        with pytest.raises(TypeError, match="wrap_session cannot be pickled"):
            pickle.dumps(wrapped)
        closed = Denoiser(backend=FunctionBackendByClass)
        closed.close()
        with pytest.raises(ValueError, match="this Denoiser is closed"):
            pickle.dumps(closed)


class TestChangesOfTheLimit:
    @pytest.mark.parametrize("rate", [16_000, 48_000])
    @pytest.mark.parametrize("step_s", [0.02, 0.1])
    def test_they_do_not_click(self, rate: int, step_s: float) -> None:
        """A hum that the engine takes away is switched on and off every 0.5 s, at all its phases."""
        hum = (0.3 * np.sin(2 * np.pi * 113 * np.arange(4 * rate) / rate)).astype(np.float32)
        with Denoiser(backend=DelayingBackend(gain=0.0)) as denoiser:
            stream = denoiser.stream(rate, step_s=step_s)
            parts = []
            for number, chunk in enumerate(np.split(hum, 8)):
                stream.attenuation_limit_db = 0.0 if number % 2 else None
                parts.append(stream.process(chunk))
        out = np.concatenate(parts)
        assert np.abs(out).max() == pytest.approx(0.3, abs=0.003)
        assert np.abs(np.diff(out)).max() <= 1.2 * np.abs(np.diff(hum)).max()

    def test_they_take_20_ms(self) -> None:
        with Denoiser(backend=DelayingBackend(gain=0.0)) as denoiser:
            stream = denoiser.stream(16_000)
            stream.process(np.ones(16_000, np.float32))
            stream.attenuation_limit_db = 0.0
            out = stream.process(np.ones(640, np.float32))
        first = int(np.flatnonzero(out)[0])
        np.testing.assert_allclose(out[first : first + 320], np.arange(1, 321) / 320, atol=1e-6)


class TestForms:
    def test_a_masked_array_is_an_error(self, delay: Denoiser) -> None:
        for audio in (np.ma.masked_array(np.zeros(400), np.zeros(400, bool)), np.ma.zeros((1, 400))):
            for call in (lambda audio: delay(audio, 16_000), delay.stream(16_000).process):
                with pytest.raises(
                    AudioError, match=r"fill the masked samples first, for example with audio.filled\(0\)"
                ):
                    call(audio)

    @pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
    @pytest.mark.parametrize("kind", [np.matrix, lambda audio: audio.view(np.recarray)])
    def test_subclasses_count_as_plain_arrays(self, delay: Denoiser, kind: Callable) -> None:
        audio = signal((2, 900), "f4")
        expected = delay(audio, 16_000)
        assert type(delay(kind(audio), 16_000)) is np.ndarray
        np.testing.assert_array_equal(delay(kind(audio), 16_000), expected)

    @pytest.mark.parametrize("shape", [(900,), (2, 900)])
    def test_half_precision(self, delay: Denoiser, shape: tuple[int, ...]) -> None:
        audio = signal(shape, "f2")
        out = delay(audio, 16_000)
        assert (out.dtype, out.shape) == (np.float16, shape)
        np.testing.assert_allclose(out, audio, rtol=2e-3)
        loud = delay(np.full(900, np.finfo(np.float16).max), 44_100)
        assert np.isfinite(loud).all()

    @pytest.mark.parametrize("audio", [[0.1, 0.2], (0, 1), 0.5, np.float32(0.5), None, "x", range(3), Fraction(1)])
    def test_other_objects_are_an_error(self, delay: Denoiser, audio: Any) -> None:
        for call in (lambda: delay(audio, 16_000), lambda: delay.stream(16_000).process(audio)):
            with pytest.raises(
                AudioError, match=r"^audio must be a numpy array or a torch tensor, got \w+: convert it"
            ):
                call()

    @pytest.mark.parametrize("kind", ["meta", "sparse", "nested"])
    def test_tensors_without_an_array_are_an_error(self, delay: Denoiser, kind: str) -> None:
        torch = pytest.importorskip("torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            tensor = {
                "meta": lambda: torch.zeros(9, device="meta"),
                "sparse": lambda: torch.zeros(9).to_sparse(),
                "nested": lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(4)]),
            }[kind]()
        for call in (lambda: delay(tensor, 16_000), lambda: delay.stream(16_000).process(tensor)):
            with pytest.raises(AudioError, match=r"audio must be a dense tensor with values") as caught:
                call()
            assert "\n" not in str(caught.value)

    def test_tensors_of_every_storage(self, delay: Denoiser) -> None:
        """With gradients, with steps, expanded, and with the bit that negates when it is read."""
        torch = pytest.importorskip("torch")
        audio = torch.from_numpy(signal((800,), "f4"))
        negated = torch.complex(torch.zeros(800), -audio).conj().imag
        assert negated.is_neg()
        kinds = (audio.clone().requires_grad_(), torch.nn.Parameter(audio) * 1, negated)
        for kind in kinds:
            found = delay.stream(16_000, gain_db=0).process(kind)
            assert torch.equal(found, delay.stream(16_000, gain_db=0).process(audio))
        every_third = audio[::3]
        assert torch.equal(delay(every_third, 16_000), delay(every_third.contiguous(), 16_000))
        assert delay(torch.ones(1).expand(9), 16_000).shape == (9,)

    @pytest.mark.parametrize("channels", [1, 2])
    @pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f4"])
    def test_buffers_by_the_format_of_their_items(self, delay: Denoiser, dtype: str, channels: int) -> None:
        audio = signal((2_001, channels), dtype[1:]).astype(dtype)
        stream = delay.stream(16_000, channels=channels)
        whole = stream.process(memoryview(audio)) + stream.flush()
        found = np.frombuffer(whole, dtype).reshape(-1, channels)[stream.latency_samples :]
        assert np.abs(found.astype(float) - audio).max() <= (1 if dtype[1] == "i" else 1e-6)

    @pytest.mark.parametrize("kind", ["h", "f"])
    def test_arrays_and_ctypes(self, delay: Denoiser, kind: str) -> None:
        pcm = signal((441,), "i2" if kind == "h" else "f4")
        expected = delay.stream(16_000).process(pcm).tobytes()
        items = ctypes.c_int16 if kind == "h" else ctypes.c_float
        for buffer in (array(kind, pcm.tobytes()), (items * 441).from_buffer_copy(pcm.tobytes())):
            assert delay.stream(16_000).process(buffer) == expected

    def test_cffi_buffers_are_bytes(self, delay: Denoiser) -> None:
        cffi = pytest.importorskip("cffi")
        pcm = signal((441,), "i2")
        ffi = cffi.FFI()
        buffer = ffi.buffer(ffi.new("int16_t[]", pcm.tolist()))
        assert delay.stream(16_000).process(buffer) == delay.stream(16_000).process(pcm).tobytes()

    @pytest.mark.parametrize("dtype", ["u2", "i4", "f2", "f8", "?"])
    def test_other_items_are_an_error(self, delay: Denoiser, dtype: str) -> None:
        with pytest.raises(AudioError, match="a buffer must hold bytes, 16-bit integers or 32-bit floats"):
            delay.stream(16_000).process(memoryview(np.zeros(4, dtype)))

    def test_planar_buffers_are_an_error(self, delay: Denoiser) -> None:
        """Their channels would be mixed up without a word."""
        audio = signal((2, 300), "i2")
        out = delay.stream(16_000, channels=2).process(memoryview(np.ascontiguousarray(audio.T)))
        assert out == delay.stream(16_000, channels=2).process(audio.T.tobytes())
        for chunk in (audio, audio[None], audio[0, 0, None].reshape(()), signal((300, 2), "i2").view(np.uint8)):
            with pytest.raises(AudioError, match="a buffer must have one dimension, or be"):
                delay.stream(16_000, channels=2).process(memoryview(chunk))
            with pytest.raises(AudioError, match="a buffer must have one dimension, or be"):
                from_pcm(memoryview(chunk), 2)

    @pytest.mark.parametrize("rate", [16_000, 44_100])
    def test_the_largest_values(self, delay: Denoiser, rate: int) -> None:
        for level in (1e12, 1e9, 1e-30, 1e-44):
            audio = (np.float32(level) * np.sign(signal((rate // 2,), "f4"))).astype(np.float32)
            stream = delay.stream(rate)
            for out in (delay(audio, rate), stream.process(audio), stream.flush()):
                assert np.isfinite(out).all()
        audio = np.zeros((2, 400), np.float32)
        audio[1, 7] = 2e12
        for call in (lambda: delay(audio, rate), lambda: delay.stream(rate, channels=2).process(audio)):
            with pytest.raises(AudioError, match="values beyond 1e12, first in channel 1 at sample 7"):
                call()


class TestOptions:
    @pytest.mark.parametrize(
        "rate", [8_000, 8_000.0, np.int16(8_000), np.float32(8_000), np.array(8_000), Fraction(8_000), "8000"]
    )
    def test_rates_of_any_number_type(self, delay: Denoiser, rate: Any) -> None:
        stream = delay.stream(rate)
        assert (stream.sample_rate_hz, type(stream.sample_rate_hz)) == (8_000, int)
        assert delay(np.zeros(9, np.float32), rate).shape == (9,)

    @pytest.mark.parametrize("rate", [None, "x", "", np.nan, np.inf, 8_000.5, 10**400, 1j, [8_000]])
    def test_what_is_no_rate(self, delay: Denoiser, rate: Any) -> None:
        for call in (lambda: delay.stream(rate), lambda: delay(np.zeros(9, np.float32), rate)):
            with pytest.raises(AudioError, match=r"sample rate must be a whole number of Hz, got .{,40}$"):
                call()

    @pytest.mark.parametrize("channels", [1.0, 2.5, "1", None, np.nan, [1]])
    def test_what_is_no_number_of_channels(self, delay: Denoiser, channels: Any) -> None:
        with pytest.raises(AudioError, match="channels must be a whole number"):
            delay.stream(16_000, channels=channels)

    @pytest.mark.parametrize("channels", [*range(1, 9), 64, np.int8(2), True])
    def test_channels(self, delay: Denoiser, channels: Any) -> None:
        """Each comes out in its place, as alone."""
        audio = signal((int(channels), 500), "i2")
        stream = delay.stream(44_100, channels=channels, gain_db=0)
        pcm = stream.process(audio.T.tobytes()) + stream.flush()
        found = from_pcm(pcm, int(channels))[:, stream.latency_samples :]
        assert np.abs(found - audio.astype(int)).max() <= 1

    def test_huge_options(self, delay: Denoiser) -> None:
        for options in ({"step_s": 1e308}, {"lookahead_s": 1e308}):
            with pytest.raises(ValueError, match="must be a multiple of"):
                delay.stream(16_000, **options)
        for limit_db in (1e308, 10**400, np.inf):
            stream = delay.stream(16_000, attenuation_limit_db=limit_db)
            assert np.isfinite(stream.process(np.ones(16_000, np.float32))).all()
            assert np.isfinite(delay(np.ones(400, np.float32), 16_000, attenuation_limit_db=limit_db)).all()

    @pytest.mark.parametrize("value", ["1", b"1", None, [1], 1j, np.zeros(2)])
    def test_what_is_no_number(self, delay: Denoiser, value: Any) -> None:
        """The error names the argument, whatever was passed."""
        calls: dict[str, Callable[..., Any]] = {
            "step_s": lambda step_s: delay.stream(16_000, step_s=step_s),
            "lookahead_s": lambda lookahead_s: delay.stream(16_000, lookahead_s=lookahead_s),
            "gain_db": lambda gain_db: delay.stream(16_000, gain_db=gain_db),
            "attenuation_limit_db": lambda limit_db: delay.stream(16_000, attenuation_limit_db=limit_db),
            "horizon_s": lambda horizon_s: Averaging(horizon_s=horizon_s),
            "start_s": lambda start_s: Averaging(start_s=start_s),
            "duration_s of statistics": lambda duration_s: Statistics(np.zeros((1, 1), np.float32), duration_s),
            "headroom_s": lambda headroom_s: BackgroundStream(delay.stream, headroom_s=headroom_s),
        }
        optional = {"lookahead_s", "gain_db", "attenuation_limit_db", "horizon_s", "start_s"}
        for name, call in calls.items():
            if value is not None or name not in optional:
                with pytest.raises(ValueError, match=rf"^{name} must be a number, got .{{1,40}}$"):
                    call(value)

    @pytest.mark.parametrize("value", [1.0, "1", np.nan, [1]])
    def test_what_is_no_whole_number(self, value: Any) -> None:
        for name in ("threads", "batch_size"):
            with pytest.raises(ValueError, match=rf"^{name} must be a whole number, got "):
                Denoiser(backend=DelayingBackend(), **{name: value})

    def test_more_threads_than_an_engine_starts(self) -> None:
        for threads in (1025, 2**31, 10**5000):
            with pytest.raises(ValueError, match=r"^threads must be at most 1024, got .{1,40}$"):
                Denoiser(backend=DelayingBackend(), threads=threads)

    def test_numbers_of_other_types(self, delay: Denoiser) -> None:
        for step_s in (np.float32(0.1), np.float64(0.1), Fraction(1, 10)):
            assert delay.stream(16_000, step_s=step_s).latency == delay.stream(16_000, step_s=0.1).latency
        averaging = Averaging(horizon_s=10**400, start_s=10**400)
        assert (averaging.horizon_s, averaging.start_s) == (np.inf, np.inf)
        assert delay.stream(16_000, averaging=averaging).process(np.zeros(400)).shape == (400,)

    @pytest.mark.parametrize(
        "number", [10**300, -(10**300), 10**5000, 1e300], ids=["long", "negative", "longer", "float"]
    )
    def test_numbers_too_large_for_a_message(self, delay: Denoiser, number: float) -> None:
        calls = [
            lambda: delay.stream(number),
            lambda: delay.stream(16_000, channels=number),
            lambda: delay(np.zeros(9, np.float32), number),
            lambda: delay.stream(16_000, gain_db=number),
            lambda: Statistics(np.zeros((1, 1), np.float32), -abs(number)),
            lambda: delay.stream(16_000, attenuation_limit_db=-abs(number)),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="must") as caught:
                call()
            assert len(str(caught.value)) < 120

    def test_the_limit_of_a_denoiser_is_checked_wherever_it_was_set(self) -> None:
        with Denoiser(backend=DelayingBackend()) as denoiser:
            denoiser.attenuation_limit_db = -5.0
            for call in (lambda: denoiser(np.zeros(9, np.float32), 16_000), lambda: denoiser.stream(16_000)):
                with pytest.raises(ValueError, match="attenuation_limit_db must be 0 or more, got -5"):
                    call()

    def test_files(self, delay: Denoiser) -> None:
        for value in (None, 5, b"a.wav", ["a.wav"]):
            for name, paths in (("source", (value, "b.wav")), ("target", ("a.wav", value))):
                with pytest.raises(TypeError, match=rf"^{name} must be a path, got "):
                    delay.denoise_file(*paths)
        with pytest.raises(TypeError, match=r"^noise_target must be a path, got 5"):
            delay.denoise_file("a.wav", "b.wav", noise_target=5)
        for limit_s in ("x", None, [1]):
            with pytest.raises(ValueError, match=r"^max_duration_s must be a number, got "):
                delay.denoise_file("a.wav", "b.wav", max_duration_s=limit_s)
        for limit_s in (np.nan, -1):
            with pytest.raises(ValueError, match=r"^max_duration_s must be 0 or more, got "):
                delay.denoise_file("a.wav", "b.wav", max_duration_s=limit_s)

    def test_wrong_types(self, delay: Denoiser) -> None:
        with pytest.raises(TypeError, match="windowing must be a Windowing, got int"):
            Denoiser(backend=DelayingBackend(), windowing=5)
        for model in (None, 5, b"frcrn-small", []):
            with pytest.raises(TypeError, match="model must be a name or a path, got"):
                Denoiser(model)
        with pytest.raises(TypeError, match="hold must be True or False, got 'no'"):
            Averaging(hold="no")
        with pytest.raises(TypeError, match="averaging must be an Averaging or None, got dict"):
            delay.stream(16_000, averaging={})
        with pytest.raises(TypeError, match="start must be Statistics or None, got float"):
            Averaging(start=1.0)

    def test_the_high_band_is_chosen_once(self, delay: Denoiser) -> None:
        """Setting it later would change nothing."""
        stream = delay.stream(48_000, high_band="drop")
        assert stream.high_band == "drop"
        with pytest.raises(AttributeError):
            stream.high_band = "follow"

    def test_a_stream_is_not_copied(self, delay: Denoiser) -> None:
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="a stream cannot be pickled or copied: open another one"):
                call(delay.stream(16_000))


class TestStatistics:
    def test_those_of_another_model_are_refused(self) -> None:
        pytest.importorskip("onnxruntime")
        with (
            Denoiser("frcrn-small", backend="ort", threads=1) as one,
            Denoiser("frcrn-small-stream", backend="ort", threads=1) as other,
        ):
            statistics = one.stream(16_000).statistics
            with pytest.raises(ValueError, match=r"averaging\.start belongs to another model"):
                other.stream(16_000, averaging=Averaging(start=statistics))
            again = one.stream(16_000, averaging=Averaging(start=statistics)).statistics
            np.testing.assert_array_equal(again.means, statistics.means)
            broken = Statistics(np.full_like(statistics.means, np.nan), 1.0)
            with pytest.raises(ValueError, match=r"averaging\.start has NaN or infinity"):
                one.stream(16_000, averaging=Averaging(start=broken))

    @pytest.mark.parametrize("duration_s", [-1.0, np.nan, np.inf])
    def test_durations(self, duration_s: float) -> None:
        with pytest.raises(ValueError, match="duration_s of statistics must be finite"):
            Statistics(np.zeros((1, 1), np.float32), duration_s)

    def test_process_streams_names_the_chunk(self, delay: Denoiser) -> None:
        streams = [delay.stream(16_000), delay.stream(16_000)]
        chunks = [np.zeros(10), np.full(10, np.nan)]
        with pytest.raises(AudioError, match=r"chunks\[1\]: audio contains NaN or infinity, first in channel 0"):
            process_streams(streams, chunks)
