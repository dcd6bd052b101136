from __future__ import annotations

import logging
import math
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, Denoiser, backend_statuses
from frcrn_accel.backends import ENTRY_POINT_GROUP, registry, resolve_backend
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.backends.ort_cuda import OrtCudaBackend
from frcrn_accel.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend
from frcrn_accel.backends.torch import TorchBackend
from frcrn_accel.denoiser import DenoiserOptions, StreamOptions
from frcrn_accel.errors import EngineError, UnsupportedPrecisionError
from frcrn_accel.models import find_model
from frcrn_accel.testing import BackendConformance, FunctionBackend


class TestFunction(BackendConformance):
    backend = FunctionBackend(np.copy)
    reads_models = False


class TestOrt(BackendConformance):
    backend = OrtBackend
    reference = "torch"


class TestOrtCuda(BackendConformance):
    backend = OrtCudaBackend("fp32")
    reference = "ort"
    repeatability = 1e-5


class TestTensorrt(BackendConformance):
    backend = TensorRtBackend("fp32")
    reference = "ort"


class TestTensorrtRtx(BackendConformance):
    backend = TensorRtRtxBackend("fp32")
    reference = "ort"


class TestTorch(BackendConformance):
    backend = TorchBackend
    reference = "ort"


def test_ort_reports_a_shape_it_cannot_run():
    pytest.importorskip("onnxruntime")
    session = OrtBackend().load(find_model("frcrn-small"), threads=1)
    with pytest.raises(EngineError, match=r"failed on a batch of \(1, 100\)"):
        session.run(np.zeros((1, 100), np.float32))


def test_ort_uses_the_threads_it_is_given():
    """Counted in a process of its own: each thread asked for is one more thread there."""
    code = (
        "import os, sys\n"
        "from frcrn_accel import Denoiser\n"
        "import numpy\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "denoiser = Denoiser(backend='ort', threads=int(sys.argv[1]))\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    pytest.importorskip("onnxruntime")
    if not sys.platform.startswith("linux"):
        pytest.skip("counts threads in /proc")
    found = [int(subprocess.check_output([sys.executable, "-c", code, str(threads)])) for threads in (1, 2, 4)]
    assert [count - found[0] for count in found] == [0, 1, 3]


class TestRegistry:
    @pytest.fixture
    def points(self, monkeypatch):
        """Replace the installed entry points."""

        def install(**targets: str) -> None:
            found = [EntryPoint(name.replace("_", "-"), value, ENTRY_POINT_GROUP) for name, value in targets.items()]
            monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in found if p.group == group])

        return install

    def test_the_built_in_ones_come_through_entry_points(self):
        built_in = {"openvino", "ort", "ort-cuda", "tensorrt", "tensorrt-rtx", "torch"}
        assert built_in <= {status.name for status in backend_statuses()}

    def test_a_plugin_is_found(self, points):
        points(mine="frcrn_accel.testing:FunctionBackend")
        assert isinstance(resolve_backend("mine"), FunctionBackend)

    def test_a_broken_plugin_is_a_warning_and_no_crash(self, points, caplog):
        points(broken="frcrn_accel.no_such_module:Nothing", mine="frcrn_accel.testing:FunctionBackend")
        statuses = {status.name: status for status in backend_statuses()}
        assert statuses["mine"].usable
        assert not statuses["broken"].usable
        assert "ModuleNotFoundError" in statuses["broken"].problem.reason
        assert "'broken' (frcrn_accel.no_such_module:Nothing) is left out: ModuleNotFoundError" in caplog.text
        with pytest.raises(BackendUnavailable, match="repair or uninstall the plug-in"):
            resolve_backend("broken")

    def test_an_entry_point_that_is_no_backend(self, points):
        points(wrong="frcrn_accel.windows:Windowing")
        with pytest.raises(BackendUnavailable, match="is not a subclass of Backend"):
            resolve_backend("wrong")

    def test_auto_takes_the_highest_priority_and_says_so(self, points, caplog, monkeypatch):
        points(
            low=f"{__name__}:LowBackend",
            high=f"{__name__}:HighBackend",
            never="frcrn_accel.testing:FunctionBackend",
            absent=f"{__name__}:AbsentBackend",
        )
        with caplog.at_level(logging.INFO, "frcrn_accel"):
            assert isinstance(resolve_backend("auto"), HighBackend)
        assert [record.message for record in caplog.records] == [
            "backend 'auto' chose 'high', the usable backend with the highest priority"
        ]

    def test_auto_checks_none_below_the_one_that_it_takes(self, points):
        points(high=f"{__name__}:HighBackend", bad=f"{__name__}:Interrupted", absent=f"{__name__}:AbsentBackend")
        assert isinstance(resolve_backend("auto"), HighBackend)
        assert isinstance(resolve_backend("auto", model=find_model("frcrn-small")), HighBackend)

    def test_auto_without_any_usable_backend_says_what_to_install(self, points):
        points(absent=f"{__name__}:AbsentBackend")
        with pytest.raises(BackendUnavailable, match=r"no backend can run.*no card; plug one in"):
            resolve_backend("auto")
        points()
        with pytest.raises(BackendUnavailable, match="no backend can run"):
            resolve_backend("auto")

    def test_a_precision_goes_to_the_backend(self, points):
        points(mine=f"{__name__}:TwoPrecisions", other="frcrn_accel.testing:FunctionBackend")
        assert resolve_backend("mine").precision == "fp16"
        assert resolve_backend("mine", "fp32").precision == "fp32"
        assert resolve_backend(TwoPrecisions, "fp32").precision == "fp32"
        assert resolve_backend(TwoPrecisions(precision="fp32"), "fp32").precision == "fp32"
        assert {status.name: status.precisions for status in backend_statuses()} == {
            "mine": ("fp16", "fp32"),
            "other": ("fp32",),
        }

    def test_a_precision_that_the_backend_does_not_have(self, points):
        points(mine=f"{__name__}:TwoPrecisions")
        for backend in ("mine", TwoPrecisions):
            with pytest.raises(UnsupportedPrecisionError, match="'two' has no precision 'int4': it has fp16, fp32"):
                resolve_backend(backend, "int4")
        with pytest.raises(ValueError, match=r"has precision 'fp16', not 'fp32': construct it with TwoPrecisions\("):
            resolve_backend(TwoPrecisions(), "fp32")

    def test_auto_takes_one_that_has_the_precision(self, points):
        points(high=f"{__name__}:HighBackend", two=f"{__name__}:TwoPrecisions")
        assert isinstance(resolve_backend("auto"), HighBackend)
        assert isinstance(resolve_backend("auto", "fp32"), HighBackend)
        assert isinstance(resolve_backend("auto", "fp16"), TwoPrecisions)
        with pytest.raises(UnsupportedPrecisionError, match="'auto' has no precision 'int4': it has fp16, fp32"):
            resolve_backend("auto", "int4")

    def test_statuses_put_what_auto_takes_first(self, points):
        points(absent=f"{__name__}:AbsentBackend", low=f"{__name__}:LowBackend", high=f"{__name__}:HighBackend")
        assert [status.name for status in backend_statuses()] == ["high", "low", "absent"]

    def test_two_plugins_of_one_name(self, monkeypatch, caplog):
        found = [
            EntryPoint("mine", f"{__name__}:{name}", ENTRY_POINT_GROUP) for name in ("LowBackend", "HighBackend")
        ]
        monkeypatch.setattr(registry, "entry_points", lambda group: found)
        assert isinstance(resolve_backend("mine"), LowBackend)
        assert "two backends are named 'mine'" in caplog.text

    @pytest.mark.parametrize("where", ["check", "priority_for", "exits in check", "exits in priority_for"])
    def test_a_plugin_that_raises_anything_takes_nobody_down(self, points, caplog, where):
        raising = {
            "check": "RaisesInCheck",
            "priority_for": "RaisesInPriority",
            "exits in check": "ExitsInCheck",
            "exits in priority_for": "ExitsInPriority",
        }[where]
        points(bad=f"{__name__}:{raising}", low=f"{__name__}:LowBackend")
        assert isinstance(resolve_backend("auto", model=find_model("frcrn-small")), LowBackend)
        (bad,) = (status for status in backend_statuses(find_model("frcrn-small")) if status.name == "bad")
        assert not bad.usable
        assert f"its plug-in {__name__}:{raising} failed" in bad.problem.reason
        assert f"backend 'bad' ({__name__}:{raising}) is left out: " in caplog.text

    def test_a_plugin_that_exits_at_import_takes_nobody_down(self, points, caplog, tmp_path, monkeypatch):
        (tmp_path / "exiting_plugin.py").write_text("raise SystemExit(7)\n")
        monkeypatch.syspath_prepend(tmp_path)
        points(bad="exiting_plugin:Backend", low=f"{__name__}:LowBackend")
        assert isinstance(resolve_backend("auto"), LowBackend)
        assert "backend 'bad' (exiting_plugin:Backend) is left out: SystemExit(7)" in caplog.text
        with pytest.raises(BackendUnavailable, match=r"exiting_plugin:Backend failed \(SystemExit\(7\)\); repair"):
            resolve_backend("bad")

    def test_control_c_in_a_plugin_still_ends_the_process(self, points):
        points(bad=f"{__name__}:Interrupted")
        with pytest.raises(KeyboardInterrupt):
            backend_statuses()

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_plugin_does_not_shadow_a_built_in(self, monkeypatch, caplog, order):
        pytest.importorskip("onnxruntime")
        values = ["frcrn_accel.backends.ort:OrtBackend", f"{__name__}:LowBackend"][::order]
        found = [EntryPoint("ort", value, ENTRY_POINT_GROUP) for value in values]
        monkeypatch.setattr(registry, "entry_points", lambda group: found)
        assert isinstance(resolve_backend("ort"), OrtBackend)
        assert (
            "two backends are named 'ort': using frcrn_accel.backends.ort:OrtBackend, "
            f"ignoring {__name__}:LowBackend" in caplog.text
        )


class TestOptionsWithoutEffect:
    def test_threads_where_nothing_computes_on_the_cpu(self):
        with pytest.raises(ValueError, match="backend 'function' does not compute on the CPU: leave threads out"):
            Denoiser(backend=WithoutThreads(), threads=2)
        with Denoiser(backend=WithoutThreads()) as denoiser:
            assert denoiser.backend == "function"

    def test_threads_with_tensorrt(self):
        assert not TensorRtBackend.uses_threads
        assert not TensorRtRtxBackend.uses_threads

    def test_batches_with_int8_on_onnx_runtime(self):
        pytest.importorskip("onnxruntime")
        for backend in ("ort-dynamic-int8", "ort-static-int8"):
            with pytest.raises(ValueError, match=f"backend '{backend}' computes one window per call: leave"):
                Denoiser(backend=backend, batch_size=4)
        with Denoiser(backend="ort", batch_size=4) as denoiser:
            assert denoiser.options.batch_size == 4


class TestDenoiserOptions:
    def test_opening_is_constructing(self):
        options = DenoiserOptions(backend=FunctionBackend(), attenuation_limit_db=6.0)
        with options.open() as denoiser:
            assert denoiser.options == options
            assert denoiser.attenuation_limit_db == 6.0

    @pytest.mark.parametrize(
        ("values", "problem"),
        [
            ({"threads": 0}, "threads must be at least 1, got 0"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"attenuation_limit_db": -1.0}, "-1"),
        ],
    )
    def test_a_value_out_of_range(self, values, problem):
        with pytest.raises(ValueError, match=problem):
            DenoiserOptions(**values)
        with pytest.raises(ValueError, match=problem):
            Denoiser(backend=FunctionBackend(), **values)

    @pytest.mark.parametrize(
        ("values", "problem"),
        [
            ({"step_s": 0.03}, "step_s must be a multiple of 0.02 s, up to 1 s, got 0.03 s"),
            ({"step_s": math.inf}, "step_s must be a multiple"),
            ({"step_s": math.nan}, "step_s must be a multiple"),
            ({"gain_db": math.nan}, "gain_db must be -200 to 200 dB, got nan dB"),
            ({"gain_db": 1e6}, "gain_db must be -200 to 200 dB, got 1e\\+06 dB"),
            ({"attenuation_limit_db": -1.0}, "-1"),
            ({"high_band": "invent"}, "high_band must be one of follow, drop, got 'invent'"),
        ],
    )
    def test_a_stream_option_out_of_range(self, values, problem):
        with pytest.raises(ValueError, match=problem):
            StreamOptions(**values)

    def test_opening_a_stream(self):
        pytest.importorskip("onnxruntime")
        options = StreamOptions(step_s=0.1, attenuation_limit_db=12.0)
        with Denoiser("frcrn-small-stream", backend="ort", threads=1) as denoiser:
            stream = options.open(denoiser, 16_000, channels=2)
            assert (stream.channels, stream.attenuation_limit_db) == (2, 12.0)
            assert stream.latency.step_s == pytest.approx(0.1, abs=1e-4)


class WithoutThreads(FunctionBackend):
    uses_threads = False


class TestWithoutThreads(BackendConformance):
    backend = WithoutThreads(np.copy)
    reads_models = False


class RaisesInCheck(FunctionBackend):
    priority = 99

    @classmethod
    def check(cls) -> None:
        raise ZeroDivisionError("oops")


class RaisesInPriority(FunctionBackend):
    priority = 99

    @classmethod
    def priority_for(cls, model) -> int:
        raise ZeroDivisionError("oops")


class ExitsInCheck(FunctionBackend):
    priority = 99

    @classmethod
    def check(cls) -> None:
        sys.exit(7)


class ExitsInPriority(FunctionBackend):
    priority = 99

    @classmethod
    def priority_for(cls, model) -> int:
        sys.exit(7)


class Interrupted(FunctionBackend):
    @classmethod
    def check(cls) -> None:
        raise KeyboardInterrupt


class LowBackend(FunctionBackend):
    name = "low"
    priority = 5


class HighBackend(FunctionBackend):
    name = "high"
    priority = 500


class TwoPrecisions(FunctionBackend):
    name = "two"
    priority = 1
    precisions = ("fp16", "fp32")


class AbsentBackend(FunctionBackend):
    name = "absent"
    priority = 900

    @classmethod
    def check(cls):
        raise BackendUnavailable(cls.name, "no card", "plug one in")


class TestMissingPackages:
    """In processes where the packages cannot be imported."""

    @staticmethod
    def run(hidden: str, code: str) -> str:
        block = f"import sys; sys.modules.update(dict.fromkeys({hidden.split()!r}))\n"
        return subprocess.run(
            [sys.executable, "-c", block + code], capture_output=True, text=True, check=True
        ).stdout.strip()

    @pytest.mark.parametrize(
        ("backend", "hidden", "extra"),
        [
            ("ort", "onnxruntime", "ort"),
            ("torch", "torch", "export"),
            ("openvino", "openvino", "openvino"),
            ("openvino", "onnx", "openvino"),
            ("ort-cuda", "onnxruntime", "cuda"),
            ("tensorrt", "tensorrt", "tensorrt"),
            ("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx"),
            ("tensorrt-rtx", "cuda", "tensorrt-rtx"),
        ],
    )
    def test_reason_and_remedy(self, backend, hidden, extra):
        code = (
            "from frcrn_accel import Denoiser, BackendUnavailable\n"
            f"try: Denoiser(backend={backend!r})\n"
            "except BackendUnavailable as error: print(error)"
        )
        text = self.run(hidden, code)
        assert hidden in text
        assert f"pip install 'frcrn-accel[{extra}]'" in text

    def test_auto_goes_to_the_next(self):
        pytest.importorskip("torch")
        code = "from frcrn_accel import Denoiser; print(Denoiser().backend)"
        assert self.run("onnxruntime openvino", code) == "torch"

    def test_a_checkpoint_without_torch(self, tmp_path):
        code = (
            "import frcrn_accel\n"
            "from frcrn_accel.network.checkpoint import load_checkpoint\n"
            "from pathlib import Path\n"
            "try: load_checkpoint(Path('x.pt'))\n"
            "except frcrn_accel.MissingExtraError as error: print(error)"
        )
        assert "pip install 'frcrn-accel[export]'" in self.run("torch", code)


def test_a_denoiser_on_torch_and_on_ort_agree(noisy):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    one, other = (Denoiser(backend=name)(noisy[:32_000], 16_000) for name in ("torch", "ort"))
    assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()
