"""Plans, built for real and without a card, and what is said where there is none."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, Denoiser, EngineError, ModelError, ModelFile
from frcrn_accel.backends import resolve_backend
from frcrn_accel.backends.cuda import CudaError, DeviceBuffer, Gpu, Queue, find_gpu
from frcrn_accel.backends.gpu import driver_problem
from frcrn_accel.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend, load_plan
from frcrn_accel.backends.tensorrt_plan import BuildLog, Plan, Target, build_plan, plan_target
from frcrn_accel.cli import app
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import CACHE_DIR_VARIABLE, find_model
from frcrn_accel.network.topology import Config
from frcrn_accel.prepare import prepare
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quantize import quantize_model

trt = pytest.importorskip("tensorrt_rtx")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("cuda.bindings")

from plan import detailed_plan, int8_share, least_time_s, parse_layers, random_models  # noqa: E402

from plan import CARDS, Layer, Tensor  # noqa: E402  # isort: skip

CAPABILITIES = ("8.6", "8.9")
# Compute capabilities of the plans of the packaged model, by precision. Each one is a build of its own.
PLANS_FOR = {"fp32": ("8.9",), "fp16": CAPABILITIES, "int8": ("8.9",)}
KEPT_IN_FLOAT = ("unet.fsmn_enc.1", "unet.fsmn_dec.5")
needs_no_gpu = pytest.mark.skipif(driver_problem() is None, reason="about machines without a GPU")


@pytest.fixture(scope="module")
def int8(quantized_once) -> ModelFile:
    """The packaged model in INT8, with the layers in float that the gate wants."""
    return ModelFile.open(Path(quantized_once("tensorrt-int8", *KEPT_IN_FLOAT).output))


@pytest.fixture(scope="module")
def packaged_plans(int8) -> Callable[[str], tuple[Plan, BuildLog]]:
    """Plans of the packaged model, and the logs of building them, by precision: each is built once."""

    @functools.cache
    def packaged(precision: str) -> tuple[Plan, BuildLog]:
        model = int8 if precision == "int8" else find_model("frcrn-small")
        return detailed_plan(model, precision, max_batch=4, compute_capabilities=PLANS_FOR[precision])

    return packaged


def prepared(model: ModelFile, precision: str, folder: Path) -> ModelFile:
    """Return the file that the backend loads, in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_DIR_VARIABLE, str(folder))
        return prepare(model, TensorRtRtxBackend(precision))


@pytest.fixture(scope="module")
def half(tiny, tmp_path_factory) -> ModelFile:
    return prepared(tiny, "fp16", tmp_path_factory.mktemp("half"))


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory) -> ModelFile:
    return prepared(tiny, "fp32", tmp_path_factory.mktemp("plain"))


@pytest.fixture
def target(half) -> Target:
    return plan_target(half, "tensorrt_rtx", "fp16", ["8.9"], longest_window_samples=6400, max_batch=2)


class TestBuilding:
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_the_packaged_model(self, int8, packaged_plans, precision):
        model = int8 if precision == "int8" else find_model("frcrn-small")
        plan, build_log = packaged_plans(precision)
        assert build_log.errors == []
        assert plan.target == Target(
            model_sha256=sha256_of(prepare(model, TensorRtRtxBackend(precision)).path),
            package="tensorrt_rtx",
            package_version=trt.__version__,
            gpu="",
            compute_capabilities=PLANS_FOR[precision],
            precision=precision,
            longest_window_samples=320_000,
            max_batch=4,
        )
        assert len(plan.content) > 10_000_000
        datatypes = {layer.datatypes for layer in parse_layers(build_log.details)} - {""}
        # The rest of INT8 is what it is in fp16: of one form, the same layers stay in float32.
        expected = {"fp32": set(), "fp16": {"Half x Half"}, "int8": {"Half x Half", "Int8 x Int8"}}
        assert datatypes == {"Float x Float"} | expected[precision]

    def test_the_convolutions_of_the_packaged_model_are_int8(self, packaged_plans):
        _, build_log = packaged_plans("int8")
        layers = parse_layers(build_log.details)
        # In each U-Net encoders 1 to 6 have one convolution, decoders 0 to 5 two, and each of 14 FSMN layers two.
        unets = find_model("frcrn-small").metadata.unets
        quantized = unets * (6 + 2 * 6 + 2 * 14) - 2 * len(KEPT_IN_FLOAT)
        assert sum(layer.datatypes == "Int8 x Int8" for layer in layers) == quantized
        assert not any(layer.is_transposed for layer in layers if layer.datatypes == "Int8 x Int8")
        # So few channels leave more to the transforms and to the filters, which are in float.
        assert int8_share(layers) > 0.75
        # What they sum up is float16 or INT8 again, with no layer between that scales float32.
        outputs = {layer.outputs[0].datatype for layer in layers if layer.datatypes == "Int8 x Int8"}
        assert outputs <= {"Half", "Int8"}

    @pytest.mark.thorough
    def test_the_released_size(self, tmp_path):
        models = random_models(Config(128, 2), tmp_path)
        plans, layers = {}, {}
        for precision in ("fp16", "int8"):
            plan, build_log = detailed_plan(models[precision], precision, compute_capabilities=["8.9"])
            assert build_log.errors == []
            plans[precision], layers[precision] = plan, parse_layers(build_log.details)
            assert build_log.activation_bytes() < 1.5e9
        assert len(plans["int8"].content) < 0.9 * len(plans["fp16"].content)
        assert int8_share(layers["int8"]) >= 0.95
        assert int8_share(layers["fp16"]) == 0
        work = {name: sum(layer.multiply_accumulates for layer in found) for name, found in layers.items()}
        assert work["int8"] == pytest.approx(work["fp16"], rel=1e-3)
        # 37.7 GMAC a second as the network is defined, 20 s; a little more is padding.
        assert work["fp16"] == pytest.approx(20 * 37.7e9, rel=0.05)

    def test_an_operator_that_it_does_not_have_is_named(self, tmp_path, tiny):
        path = tmp_path / "half.onnx"
        quantize_model(tiny.path, path, "fp16", gate=None)
        model = onnx.load(path)
        (node,) = (node for node in model.graph.node if node.op_type == "Tanh")
        node.op_type, node.domain = "NoSuchOperator", "example"
        model.opset_import.append(onnx.helper.make_opsetid("example", 1))
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"TensorRT cannot read .*half\.onnx'.*NoSuchOperator 'unet/Tanh'"):
            TensorRtRtxBackend(window_s=0.4).build(ModelFile.open(path), ["8.9"])

    def test_files_that_are_for_another_precision(self, tiny, int8):
        with pytest.raises(ModelError, match=r"\(fp32\) is not quantized for TensorRT: run .*--method tensorrt-int8"):
            TensorRtRtxBackend("int8").build(tiny, ["8.9"])
        with pytest.raises(ModelError, match="method 'tensorrt-int8' and cannot run in 'fp16' here"):
            prepare(int8, TensorRtRtxBackend("fp16"))
        for precision, file in (("fp16", int8), ("fp16", tiny), ("fp32", tiny)):
            with pytest.raises(ModelError, match=f"is not in the form for {precision} on a GPU"):
                TensorRtRtxBackend(precision).build(file, ["8.9"])

    def test_a_capability_that_it_does_not_have(self, half):
        with pytest.raises(
            BackendUnavailable, match=r"compute capability 6\.1; choose one of 7\.5, 8\.0, 8\.6, 8\.9"
        ):
            TensorRtRtxBackend(window_s=0.4).build(half, ["6.1"])

    def test_a_card_that_it_does_not_take_is_told_before_anything_is_loaded(self, monkeypatch):
        """Then 'auto' moves on to the next backend."""
        card = Gpu(0, "NVIDIA H100 80GB HBM3", "9.0", 80_000_000_000)
        monkeypatch.setattr("frcrn_accel.backends.tensorrt.driver_problem", lambda index=0: None)
        monkeypatch.setattr("frcrn_accel.backends.cuda.find_gpu", lambda index: card)
        with pytest.raises(BackendUnavailable, match=r"compute capability 9\.0; choose one of 7\.5, .*'ort-cuda'"):
            TensorRtRtxBackend.check()

    def test_a_driver_too_old_for_the_runtime(self, monkeypatch):
        def fail(index: int) -> Gpu:
            raise CudaError(
                "CUDA driver version is insufficient for CUDA runtime version (cudaErrorInsufficientDriver)"
            )

        monkeypatch.setattr("frcrn_accel.backends.tensorrt.driver_problem", lambda index=0: None)
        monkeypatch.setattr("frcrn_accel.backends.cuda.find_gpu", fail)
        with pytest.raises(BackendUnavailable, match="the CUDA runtime says: CUDA driver version is insufficient"):
            TensorRtRtxBackend.check()


def tensor(*shape: int, datatype: str = "Half") -> Tensor:
    return Tensor(f"t{shape}", shape, datatype)


class TestReadingPlans:
    def test_multiply_accumulates_by_hand(self):
        plain = Layer("x", "correlation", (tensor(-1, 8, 10, 30),), (tensor(16, 8, 2, 5),), (tensor(-1, 16, 9, 13),))
        assert plain.multiply_accumulates == 16 * 9 * 13 * 8 * 2 * 5
        transposed = Layer("x", "deconv", (tensor(-1, 8, 10, 30),), (tensor(8, 4, 2, 5),), (tensor(-1, 4, 9, 61),))
        assert transposed.multiply_accumulates == 8 * 10 * 30 * 4 * 2 * 5
        other = Layer("__myl_Add", "kgen", (tensor(-1, 8, 10, 30),), (tensor(1, 8, 1, 1),), (tensor(-1, 8, 10, 30),))
        assert other.multiply_accumulates == 0
        assert other.traffic_bytes == 2 * (8 * 10 * 30 + 8)  # one name counts once: in and out are the same here

    def test_the_least_time_is_the_longer_of_arithmetic_and_traffic(self):
        card = CARDS[0]
        heavy = Layer(
            "x", "correlation", (tensor(1, 256, 99, 99),), (tensor(256, 256, 9, 9),), (tensor(1, 256, 99, 99),)
        )
        assert least_time_s([heavy], card) == pytest.approx(2 * heavy.multiply_accumulates / 147e12)
        light = Layer("x", "kgen", (tensor(1, 256, 99, 99),), (), (tensor(1, 256, 99, 98),))
        assert least_time_s([light], card) == pytest.approx(light.traffic_bytes / 1008e9)


def doubling(model: ModelFile, path: Path) -> ModelFile:
    """Write a file with the metadata of another, which doubles its input: its plan takes little time to build."""
    graph = onnx.load(model.path)
    (source,), (result,) = graph.graph.input, graph.graph.output
    del graph.graph.node[:], graph.graph.initializer[:], graph.graph.value_info[:]
    graph.graph.node.append(onnx.helper.make_node("Add", [source.name, source.name], [result.name]))
    path.write_bytes(graph.SerializeToString())
    return ModelFile.open(path)


@pytest.mark.usefixtures("empty_cache")
class TestCache:
    @pytest.fixture
    def half(self, half, tmp_path) -> ModelFile:
        return doubling(half, tmp_path / "half.onnx")

    @pytest.fixture
    def plain(self, plain, tmp_path) -> ModelFile:
        return doubling(plain, tmp_path / "plain.onnx")

    def test_it_is_built_once(self, empty_cache, half, target):
        plan = load_plan(half, target)
        (path,) = empty_cache.iterdir()
        assert path.suffix == ".plan"
        made = path.stat().st_mtime_ns
        assert load_plan(half, target) == plan
        assert [(found, found.stat().st_mtime_ns) for found in empty_cache.iterdir()] == [(path, made)]

    def test_a_damaged_one_is_built_again(self, empty_cache, half, target, caplog):
        plan = load_plan(half, target)
        (path,) = empty_cache.iterdir()
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b""):
            path.write_bytes(damaged)
            caplog.clear()
            assert load_plan(half, target).target == plan.target
            assert "is damaged and is made again" in caplog.text
            (path,) = empty_cache.iterdir()
            assert Plan.read(path).target == target

    def test_one_for_something_else_is_not_used(self, empty_cache, half, plain, target):
        load_plan(half, target)
        changes = (
            {"package_version": "1.0"},
            {"gpu": "Another card"},
            {"compute_capabilities": ("8.6",)},
            {"precision": "fp32"},
            {"longest_window_samples": 3200},
            {"max_batch": 1},
            {"model_sha256": "0" * 64},
        )
        for count, change in enumerate(changes, 2):
            other = dataclasses.replace(target, **change)
            file = plain if other.precision == "fp32" else half
            assert load_plan(file, other).target == other
            assert len(list(empty_cache.iterdir())) == count

    def test_building_that_fails_leaves_nothing(self, empty_cache, half, target):
        with pytest.raises(BackendUnavailable):
            load_plan(half, dataclasses.replace(target, compute_capabilities=("1.0",)))
        assert list(empty_cache.iterdir()) == []


@pytest.fixture(scope="module")
def plan_path(tmp_path_factory, half) -> Path:
    path = tmp_path_factory.mktemp("plan") / "tiny.plan"
    TensorRtRtxBackend("fp16", window_s=0.4, max_batch=2).build(half, CAPABILITIES).write(path)
    return path


class TestPlanFiles:
    def test_it_is_used_for_what_it_was_built_for(self, plan_path, half, target):
        plan = load_plan(half, dataclasses.replace(target, gpu="NVIDIA GeForce RTX 4090 D"), plan_path)
        assert plan.target.compute_capabilities == ("8.6", "8.9")
        assert load_plan(half, dataclasses.replace(target, max_batch=1), plan_path) == plan

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"max_batch": 3}, "its max_batch is 2, but 3 is needed"),
            (
                {"compute_capabilities": ("12.0",)},
                r"its compute_capabilities is \('8.6', '8.9'\), but \('12.0',\) is",
            ),
            ({"model_sha256": "0" * 64}, "its model_sha256 is "),
            ({"package_version": "9"}, "its package_version is "),
        ],
    )
    def test_it_is_refused_for_anything_else(self, plan_path, half, target, change, problem):
        with pytest.raises(ModelError, match=problem):
            load_plan(half, dataclasses.replace(target, **change), plan_path)

    @pytest.mark.parametrize("content", [b"", b"{}\nx", b"\x00\x01", b'{"format": "frcrn-accel plan"}\nx', b"[]\nx"])
    def test_a_file_that_is_none(self, tmp_path, half, target, content):
        path = tmp_path / "x.plan"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"x\.plan' is not a plan built by 'frcrn-accel build-engine'"):
            load_plan(half, target, path)
        with pytest.raises(ModelError, match="cannot be read: No such file"):
            load_plan(half, target, tmp_path / "none.plan")

    def test_on_the_command_line(self, tmp_path, tiny, plain, capsys):
        out = tmp_path / "tiny.plan"
        arguments = ["build-engine", str(tiny.path), str(out), "--precision", "fp32", "--window-s", "1"]
        arguments += ["--max-batch", "3", "--compute-capability", "8.6", "--compute-capability", "8.9"]
        app(arguments, standalone_mode=False)
        assert Plan.read(out).target == plan_target(
            plain, "tensorrt_rtx", "fp32", ["8.6", "8.9"], longest_window_samples=16_000, max_batch=3
        )
        assert "tiny, fp32, compute capability 8.6, 8.9, 1 to 3 windows of up to 1 s" in capsys.readouterr().out


class TestWithoutGpu:
    @needs_no_gpu
    def test_the_reason_is_the_driver(self):
        with pytest.raises(BackendUnavailable, match="'tensorrt-rtx' cannot run here: NVIDIA's driver") as caught:
            Denoiser(backend="tensorrt-rtx")
        assert "libcuda" in caught.value.reason or "driver says" in caught.value.reason
        assert "install the driver" in caught.value.remedy
        with pytest.raises(BackendUnavailable, match="NVIDIA's driver"):
            TensorRtRtxBackend().build(find_model("frcrn-small"))

    @needs_no_gpu
    def test_the_cuda_runtime_says_so_too(self):
        for call in (lambda: find_gpu(0), Queue, lambda: DeviceBuffer().reserve(1)):
            with pytest.raises(CudaError, match=r"\(cudaError\w+\)"):
                call()

    @needs_no_gpu
    def test_auto_takes_a_cpu_engine_and_says_so(self, caplog):
        with caplog.at_level(logging.INFO, "frcrn_accel"):
            assert not resolve_backend("auto", model=find_model("frcrn-small")).name.startswith("tensorrt")
        assert "backend 'auto' chose 'o" in caplog.text

    def test_the_other_package_is_told_apart(self, half):
        with pytest.raises(BackendUnavailable) as caught:
            TensorRtBackend().build(half, ["8.9"])
        assert caught.value.remedy == "pip install 'frcrn-accel[tensorrt]'" or "for the card" in caught.value.reason

    def test_errors_of_the_engine_are_told(self, half, target):
        build_log = BuildLog()
        with pytest.raises(EngineError, match=r"TensorRT cannot build .*tiny-.*\.onnx': \S"):
            build_plan(half, dataclasses.replace(target, longest_window_samples=0), build_log=build_log)
        assert build_log.errors


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"device_index": -1}, "device_index must be 0 or more"),
            ({"max_batch": 0}, "max_batch must be 1 or more"),
            ({"window_s": 0}, "window_s must be finite and at least one frame of 0.04 s, got 0"),
            ({"window_s": float("inf")}, "window_s must be finite and at least one frame of 0.04 s, got inf"),
            ({"calibration": "x"}, "calibrates for precision 'int8' only"),
        ],
    )
    def test_out_of_range(self, options, problem):
        with pytest.raises(ValueError, match=problem):
            TensorRtRtxBackend(**options)

    def test_the_file_decides_the_precision(self, int8, tiny):
        assert TensorRtRtxBackend().precision_for(int8) == "int8"
        assert TensorRtRtxBackend().precision_for(tiny) == "fp16"
        assert TensorRtRtxBackend("fp32").precision_for(tiny) == "fp32"
        assert TensorRtRtxBackend.priority_for(int8) == TensorRtRtxBackend.priority


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 90), ("fp16", 60), ("int8", 30)])
def test_speech_is_what_fp32_makes_of_it(int8, noisy, precision, least_db):
    """Where there is a card."""
    try:
        TensorRtRtxBackend.check()
    except BackendUnavailable as error:
        pytest.skip(str(error))
    expected = Denoiser(backend="ort")(noisy, 16_000)
    model = int8.path if precision == "int8" else "frcrn-small"
    with Denoiser(model, backend="tensorrt-rtx", precision=precision) as denoiser:
        found = denoiser(np.concatenate([noisy, noisy, noisy]), 16_000)[: len(noisy) // 2]
        assert si_sdr_db(expected[: len(noisy) // 2], found) > 20  # windows of another place
        assert si_sdr_db(expected, denoiser(noisy, 16_000)) > least_db
