"""Code that engines on a GPU share, tested without one: halving, the driver, fixed windows; and the CUDA provider."""

from __future__ import annotations

import dataclasses
import logging
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from frcrn_accel import Backend, BackendUnavailable, Denoiser, EngineError, Windowing, backend_statuses
from frcrn_accel.backends import resolve_backend
from frcrn_accel.backends.fixed_shapes import FixedShapes, run_bound
from frcrn_accel.backends.gpu import GpuSession, OutOfGpuMemory, driver_problem
from frcrn_accel.backends.ort_cuda import OrtCudaBackend, provider_problem
from frcrn_accel.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend
from frcrn_accel.cli import app
from frcrn_accel.models import find_model
from frcrn_accel.prepare import prepare
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.testing import FunctionBackend, _resolve_or_skip

needs_no_gpu = pytest.mark.skipif(driver_problem() is None, reason="about machines without a GPU")
GPU_BACKENDS = {backend.name: backend for backend in (OrtCudaBackend, TensorRtBackend, TensorRtRtxBackend)}
needs_gpu = pytest.mark.skipif(driver_problem() is not None, reason="about machines with an NVIDIA GPU")


class SmallSession(GpuSession):
    """A GPU with room for a few windows, which gives back what it gets."""

    device = "a small GPU"

    def __init__(self, room: int) -> None:
        self.room = room
        self.batches: list[int] = []

    def run_batch(self, audio):
        self.batches.append(len(audio))
        if len(audio) > self.room:
            raise OutOfGpuMemory("12 GB are not there")
        return audio.copy()


class TestHalving:
    @pytest.mark.parametrize(
        ("room", "windows", "batches"),
        [
            (8, 8, [8]),
            (4, 8, [8, 4, 4]),
            (3, 8, [8, 4, 2, 2, 4, 2, 2]),
            (1, 3, [3, 2, 1, 1, 1]),
            (2, 5, [5, 3, 2, 1, 2]),
        ],
    )
    def test_down_to_what_fits(self, room, windows, batches):
        session = SmallSession(room)
        audio = np.arange(windows * 640, dtype=np.float32).reshape(windows, 640)
        np.testing.assert_array_equal(session.run(audio), audio)
        assert session.batches == batches

    def test_the_next_batch_starts_there(self, caplog):
        session = SmallSession(2)
        audio = np.ones((8, 640), np.float32)
        session.run(audio)
        assert [record.message for record in caplog.records][:2] == [
            "a batch of 8 windows does not fit into the GPU's memory; using 4 from now on",
            "a batch of 4 windows does not fit into the GPU's memory; using 2 from now on",
        ]
        session.batches.clear()
        assert session.run(audio).shape == (8, 640)
        assert session.batches == [2, 2, 2, 2]

    def test_one_window_that_does_not_fit_is_an_error_with_the_ways_out(self):
        with pytest.raises(
            EngineError, match=r"does not hold one window of 640 samples on a small GPU \(12 GB are"
        ) as caught:
            SmallSession(0).run(np.ones((4, 640), np.float32))
        for way in ("gpu_memory_limit_mb", "Windowing(window_s=10)", "backend='ort'"):
            assert way in str(caught.value)

    def test_other_errors_are_not_tried_again(self):
        session = SmallSession(1)
        session.run_batch = lambda audio: (_ for _ in ()).throw(EngineError("broken"))
        with pytest.raises(EngineError, match="broken"):
            session.run(np.ones((4, 640), np.float32))


class TestFixedWindows:
    @pytest.mark.parametrize("seconds", [20.02, 21, 37, 60, 61, 1000])
    def test_all_signals_have_windows_of_one_length(self, seconds):
        samples = round(seconds * 50) * 320
        plan = Windowing(fixed=True).plan(samples, 16_000, 320)
        assert {window.samples for window in plan} == {320_000}
        assert len(plan) == len(Windowing().plan(samples, 16_000, 320))
        assert plan[0].start == 0
        assert plan[-1].stop == samples
        total = np.zeros(samples)
        for window in plan:
            total[window.start : window.stop] += window.weights()
        np.testing.assert_allclose(total, 1, atol=1e-6)

    def test_a_shorter_signal_is_one_whole_pass(self):
        assert [window.samples for window in Windowing(fixed=True).plan(16_000, 16_000, 320)] == [16_000]

    def test_a_backend_asks_for_them(self):
        lengths = []

        class Fixed(FunctionBackend):
            fixed_windows = True

        def note(audio):
            lengths.append(audio.shape)
            return audio.copy()

        audio = np.random.default_rng(0).standard_normal(7 * 16_000).astype(np.float32)
        windowing = Windowing(window_s=3, past_s=0.5, future_s=0.1, fade_s=0.1)
        asked = dataclasses.replace(windowing, fixed=True)
        for backend, given in (
            (Fixed(note), windowing),
            (FunctionBackend(note), asked),
            (FunctionBackend(note), windowing),
        ):
            with Denoiser(backend=backend, windowing=given) as denoiser:
                np.testing.assert_allclose(denoiser(audio, 16_000), audio, atol=1e-4)
        assert lengths == [(1, 48_000)] * 6 + [(1, 45_120)] * 3


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"device_index": -1}, "device_index must be 0 or more, got -1"),
            ({"gpu_memory_limit_mb": 0}, "gpu_memory_limit_mb must be at least 1, got 0"),
        ],
    )
    def test_out_of_range(self, options, problem):
        with pytest.raises(ValueError, match=problem):
            OrtCudaBackend(**options)

    def test_what_the_provider_is_given(self):
        assert OrtCudaBackend().provider_options("fp16") == {
            "device_id": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "use_tf32": "1",
        }
        options = OrtCudaBackend(device_index=1, gpu_memory_limit_mb=2000, cuda_graphs=True, prefer_nhwc=True)
        assert options.provider_options("fp32") == {
            "device_id": "1",
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "gpu_mem_limit": "2000000000",
            "enable_cuda_graph": "1",
            "prefer_nhwc": "1",
            "use_tf32": "0",
        }


class TestFixedShapes:
    """On the CPU, which ignores the number of a CUDA graph; buffers and results are the same."""

    @pytest.fixture(scope="class")
    @classmethod
    def small(cls):
        pytest.importorskip("onnxruntime")
        from frcrn_accel.backends.ort import cpu_session

        return cpu_session(str(find_model("frcrn-small").path), 1)

    @staticmethod
    def batch(windows: int, samples: int) -> np.ndarray:
        return np.random.default_rng(windows).standard_normal((windows, samples), np.float32) * np.float32(0.05)

    def test_results_are_those_of_single_calls(self, small):
        shapes = FixedShapes(small, "cpu", 0)
        found = []
        for shape in [(2, 1_280), (1, 1_280), (2, 1_280), (1, 1_280), (2, 1_280), (3, 960)]:
            for scale in (1, 0.5):
                batch = self.batch(*shape) * np.float32(scale)
                found.append((shapes.run(batch), run_bound(small, batch, "cpu", 0)))
        assert shapes.shapes == [(2, 1_280), (1, 1_280), (3, 960)]
        for result, expected in found:  # after all calls: none has written into the result of another
            np.testing.assert_array_equal(result, expected)

    def test_a_bound_on_shapes(self, small):
        """Those that come first have buffers; the others run without."""
        shapes = FixedShapes(small, "cpu", 0)
        for windows in range(1, 7):
            batch = self.batch(windows, 960)
            for _ in range(3):
                np.testing.assert_array_equal(shapes.run(batch), run_bound(small, batch, "cpu", 0))
        assert shapes.shapes == [(windows, 960) for windows in range(1, 5)]

    def test_one_call_at_a_time(self, small):
        shapes = FixedShapes(small, "cpu", 0)
        batches = [self.batch(1, 1_280) * np.float32(0.1 * i) for i in range(16)]
        expected = [run_bound(small, batch, "cpu", 0) for batch in batches]
        with ThreadPoolExecutor(4) as pool:
            for result, right in zip(pool.map(shapes.run, batches), expected, strict=True):
                np.testing.assert_array_equal(result, right)


@needs_no_gpu
def test_the_driver_is_told_about():
    assert "NVIDIA's driver" in driver_problem()


class TestOnnxRuntime:
    """With either of ONNX Runtime's packages."""

    @pytest.fixture
    def has_cuda(self) -> bool:
        onnxruntime = pytest.importorskip("onnxruntime")
        return "CUDAExecutionProvider" in onnxruntime.get_available_providers()

    @needs_no_gpu
    def test_the_reason_and_the_remedy(self, has_cuda):
        with pytest.raises(BackendUnavailable) as caught:
            Denoiser(backend="ort-cuda")
        if has_cuda:
            assert caught.value.reason == driver_problem()
            assert caught.value.remedy.startswith("install the driver for your NVIDIA GPU")
        else:
            assert caught.value.reason == "the installed onnxruntime package is built without CUDA"
            assert caught.value.remedy.endswith("pip install 'frcrn-accel[cuda]'")
        (status,) = (status for status in backend_statuses() if status.name == "ort-cuda")
        assert not status.usable
        assert (status.problem.reason, status.problem.remedy) == (caught.value.reason, caught.value.remedy)

    @needs_no_gpu
    def test_the_loader_is_quoted(self, has_cuda):
        """As on a machine with a driver, but without CUDA's or cuDNN's libraries."""
        if not has_cuda:
            pytest.skip("this onnxruntime has no CUDA in it")
        problem = provider_problem()
        assert ".so" in problem or "CUDA" in problem
        assert "fell back" not in problem

    @needs_no_gpu
    def test_a_session_that_falls_back_is_an_error(self, has_cuda, monkeypatch):
        """Without the checks, ONNX Runtime falls back to the CPU, with a message on standard error."""
        if not has_cuda:
            pytest.skip("this onnxruntime has no CUDA in it")
        monkeypatch.setattr("frcrn_accel.backends.ort_cuda.driver_problem", lambda index=0: None)
        monkeypatch.setattr(OrtCudaBackend, "check", classmethod(lambda cls: None))
        backend = OrtCudaBackend("fp32")
        file = prepare(find_model("frcrn-small"), backend)
        with pytest.raises(BackendUnavailable) as caught:
            backend.load(file, threads=1)
        assert caught.value.reason == provider_problem()

    @needs_no_gpu
    def test_auto_takes_the_cpu_and_says_so(self, has_cuda, caplog):
        with caplog.at_level(logging.INFO, "frcrn_accel"):
            chosen = resolve_backend("auto", model=find_model("frcrn-small"))
        assert chosen.name.startswith(("ort", "openvino"))
        assert chosen.name != "ort-cuda"
        assert f"backend 'auto' chose '{chosen.name}'" in caplog.text

    def test_the_cpu_runs_beside_it(self, has_cuda, noisy):
        with Denoiser(backend="ort") as denoiser:
            assert denoiser.device.startswith("CPUExecutionProvider")
            assert np.isfinite(denoiser(noisy[:16_000], 16_000)).all()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.02)])
def test_the_form_for_gpus_is_the_same_network(precision, tolerance):
    """On ONNX Runtime's CPU provider: what a GPU is given."""
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = find_model("frcrn-small")
    audio = (0.05 * np.random.default_rng(0).standard_normal((2, 32_000))).astype(np.float32)
    expected = resolve_backend("ort").load(model, threads=2).run(audio)
    file = prepare(model, OrtCudaBackend(precision))
    session = onnxruntime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"audio": audio})
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@needs_gpu
class TestOnACard:
    """Tests that need a GPU, with whichever engine for it is installed."""

    @pytest.fixture(params=["ort-cuda", "tensorrt", "tensorrt-rtx"])
    def name(self, request) -> str:
        return request.param

    def backend(self, name: str, precision: str, **options) -> Backend:
        """Return the backend, or skip the test with the reason why it cannot run."""
        return _resolve_or_skip(GPU_BACKENDS[name](precision, **options))

    @pytest.mark.parametrize(("precision", "least_db"), [("fp32", 80), ("fp16", 40)])
    def test_windows_of_a_long_signal(self, name, precision, least_db, noisy, denoiser):
        """Several batches, the last one smaller, as on the CPU with the same windows."""
        audio = np.tile(noisy, 7)[: 65 * 16_000]
        backend = self.backend(name, precision)
        with (
            Denoiser(backend=backend) as on_card,
            Denoiser(backend="ort", windowing=Windowing(fixed=True)) as on_cpu,
        ):
            assert si_sdr_db(on_cpu(audio, 16_000), on_card(audio, 16_000)) >= least_db

    def test_the_same_bits_each_time(self, name, noisy):
        """In fp16, for batches of several sizes, with others between them."""
        session = self.backend(name, "fp16").load(find_model("frcrn-small"), threads=2)
        signals = [noisy[None, : 10 * 16_000], np.stack([noisy] * 3), noisy[None, : 4 * 320]]
        first = [session.run(signal) for signal in signals]
        for _ in range(5):
            for signal, expected in zip(signals, first, strict=True):
                np.testing.assert_array_equal(session.run(signal), expected)

    def test_cuda_graphs(self, noisy):
        """Calls that launch a graph give the bits of calls that do not."""
        model = find_model("frcrn-small")
        session = self.backend("ort-cuda", "fp16", cuda_graphs=True).load(model, threads=2)
        plain = self.backend("ort-cuda", "fp16").load(model, threads=2)
        for samples in (10 * 16_000, 4 * 320):
            for scale in (1, 0.5, 0.25, 0.125, 0.0625):
                batch = noisy[None, :samples] * np.float32(scale)
                np.testing.assert_array_equal(session.run(batch), plain.run(batch))

    def test_channels_last(self, noisy, denoiser):
        with Denoiser(backend=self.backend("ort-cuda", "fp16", prefer_nhwc=True)) as on_card:
            assert si_sdr_db(denoiser(noisy, 16_000), on_card(noisy, 16_000)) >= 40

    def test_it_is_silent(self, name, capfd, noisy):
        """No message of an engine on standard error, as long as nothing is wrong; and the card by its name."""
        session = self.backend(name, "fp16").load(find_model("frcrn-small"), threads=2)
        session.run(noisy[None, : 4 * 320])
        assert capfd.readouterr().err == ""
        assert session.device.startswith("NVIDIA ")

    def test_auto_prefers_it(self, name, caplog):
        self.backend(name, "fp16")
        with caplog.at_level(logging.INFO, "frcrn_accel"):
            chosen = resolve_backend("auto", model=find_model("frcrn-small"))
        assert chosen.name in GPU_BACKENDS
        assert f"backend 'auto' chose '{chosen.name}'" in caplog.text

    def test_a_card_that_is_not_there(self, name):
        with pytest.raises(BackendUnavailable, match="there is no GPU number 99: NVIDIA's driver finds") as caught:
            self.backend(name, "fp16", device_index=99).load(find_model("frcrn-small"), threads=1)
        assert caught.value.remedy == "choose another device_index"

    def test_a_file_on_the_command_line(self, name, noisy_path, tmp_path, noisy, denoiser):
        self.backend(name, "fp16")
        out = tmp_path / "out.wav"
        app(["denoise", str(noisy_path), "-o", str(out), "--backend", name], standalone_mode=False)
        denoised, rate_hz = soundfile.read(out, dtype="float32")
        assert rate_hz == 16_000
        assert denoised.shape == noisy.shape
        assert si_sdr_db(denoiser(noisy, 16_000), denoised) >= 35  # rounded to 16 bits, too

    def test_memory_that_does_not_hold_a_batch(self, caplog, noisy):
        """With a limit for ONNX Runtime's arena: fewer windows at a time give what all at once did."""
        windows = np.stack([np.roll(noisy, 1_000 * i)[: 10 * 16_000] for i in range(16)])
        model = find_model("frcrn-small")
        expected = self.backend("ort-cuda", "fp32").load(model, threads=2).run(windows)
        session = self.backend("ort-cuda", "fp32", gpu_memory_limit_mb=1_200).load(model, threads=2)
        found = session.run(windows)
        assert "a batch of 16 windows does not fit into the GPU's memory; using 8 from now on" in caplog.text
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

    def test_a_window_that_no_memory_is_given_for(self, noisy):
        session = self.backend("ort-cuda", "fp32", gpu_memory_limit_mb=40).load(find_model("frcrn-small"), threads=2)
        with pytest.raises(EngineError, match=r"does not hold one window of 160000 samples .*gpu_memory_limit_mb"):
            session.run(noisy[None, : 10 * 16_000])

    def test_the_memory_of_a_card(self):
        runtime = pytest.importorskip("cuda.bindings.runtime")
        from frcrn_accel.backends.cuda import DeviceBuffer, Queue, find_gpu, use_gpu

        gpu = find_gpu(0)
        assert re.fullmatch(r"\d+\.\d", gpu.compute_capability)
        assert "NVIDIA" in gpu.name
        use_gpu(gpu)
        queue, buffer = Queue(), DeviceBuffer()
        values = np.random.default_rng(0).standard_normal((3, 640)).astype(np.float32)
        buffer.reserve(values.nbytes)
        buffer.upload(values)
        queue.wait()
        found = np.empty_like(values)
        buffer.download(found)
        np.testing.assert_array_equal(found, values)
        with pytest.raises(OutOfGpuMemory, match="cudaErrorMemoryAllocation"):
            buffer.reserve(2 * gpu.memory_bytes)
        buffer.reserve(640)  # an error of before is not reported again
        buffer.close()
        queue.close()
        assert runtime.cudaGetLastError()[0] == runtime.cudaError_t.cudaSuccess
