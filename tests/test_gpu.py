"""What engines on a GPU share, without one: halving, the driver, fixed windows. And ONNX Runtime's CUDA provider."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, Denoiser, EngineError, Windowing, backend_statuses
from frcrn_accel.backends import resolve_backend
from frcrn_accel.backends.gpu import GpuSession, OutOfGpuMemory, driver_problem, gpu_graph
from frcrn_accel.backends.ort_cuda import OrtCudaBackend, provider_problem
from frcrn_accel.models import find_model
from frcrn_accel.testing import FunctionBackend

needs_no_gpu = pytest.mark.skipif(driver_problem() is None, reason="about machines without a GPU")


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
            "a batch of 8 windows does not fit into the GPU's memory: 4 from now on",
            "a batch of 4 windows does not fit into the GPU's memory: 2 from now on",
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
            ({"cudnn_search": "best"}, "cudnn_search must be one of heuristic, exhaustive, default, got 'best'"),
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
        options = OrtCudaBackend(device_index=1, gpu_memory_limit_mb=2000, cudnn_search="exhaustive")
        assert options.provider_options("fp32") == {
            "device_id": "1",
            "cudnn_conv_algo_search": "EXHAUSTIVE",
            "arena_extend_strategy": "kSameAsRequested",
            "gpu_mem_limit": "2000000000",
            "use_tf32": "0",
        }


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
            assert caught.value.reason == "the onnxruntime package that is installed has no CUDA in it"
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
        """Past the checks, ONNX Runtime itself goes on with the CPU, with a message on standard error."""
        if not has_cuda:
            pytest.skip("this onnxruntime has no CUDA in it")
        monkeypatch.setattr("frcrn_accel.backends.ort_cuda.driver_problem", lambda index=0: None)
        monkeypatch.setattr(OrtCudaBackend, "check", classmethod(lambda cls: None))
        with pytest.raises(BackendUnavailable) as caught:
            OrtCudaBackend("fp32").load(find_model("frcrn-small"), threads=1)
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
    session = onnxruntime.InferenceSession(gpu_graph(model, precision), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"audio": audio})
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
