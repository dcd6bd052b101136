from __future__ import annotations

import dataclasses
import getpass
import json
import os
import platform
import socket
import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, __version__
from frcrn_accel.backends import backend_statuses, registry
from frcrn_accel.cpu import available_cpus
from frcrn_accel.doctor import (
    SCHEMA_PATH,
    CacheReport,
    FileReport,
    GpuDevice,
    Report,
    examine,
    examine_cpu,
    examine_gpu,
    without_names,
)
from frcrn_accel.models import CACHE_DIR_VARIABLE, DEFAULT_MODEL, find_model, keep_imported
from frcrn_accel.testing import FunctionBackend


class Fine(FunctionBackend):
    name, description, priority = "fine", "gives back what it gets", 5


class Refusing(FunctionBackend):
    name, priority = "refusing", 900

    @classmethod
    def check(cls) -> None:
        raise BackendUnavailable(cls.name, "it has no engine", "pip install engine")


class Falling(FunctionBackend):
    """A backend whose check passes, and which then fails to load."""

    name, priority = "falling", 4

    def load(self, model, threads):
        raise BackendUnavailable(self.name, "it would run on another device", "repair the driver")


class Breaking(FunctionBackend):
    name, priority = "breaking", 3

    def load(self, model, threads):
        raise KeyError(f"{Path.home()}/engine.so")


class NotFinite(FunctionBackend):
    name, priority = "not-finite", 2

    def __init__(self, precision=None):
        super().__init__(lambda audio: np.full_like(audio, np.nan), precision)


@pytest.fixture
def backends(monkeypatch, empty_cache) -> None:
    """Install backends that take no time, in place of the real ones."""
    install(monkeypatch, Fine, Refusing, Falling, Breaking, NotFinite)


def install(monkeypatch: pytest.MonkeyPatch, *backends: type[FunctionBackend]) -> None:
    points = [
        EntryPoint(found.name, f"{__name__}:{found.__name__}", registry.ENTRY_POINT_GROUP) for found in backends
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)


def changed(found: Report, **values: object) -> dict[str, object]:
    return json.loads(json.dumps(dataclasses.replace(found, **values).to_json()))


class TestReport:
    def test_every_installed_backend_ran_or_has_a_reason(self):
        pytest.importorskip("onnxruntime")
        steps: list[str] = []
        found = examine(steps.append)
        names = [status.name for status in backend_statuses()]
        assert sorted(backend.name for backend in found.backends) == sorted(names)
        assert steps[:4] == ["packages", "CPU and GPU", "cache", "models"]
        assert sorted(steps[4:]) == sorted(f"backend {name}" for name in names)
        ort = next(backend for backend in found.backends if backend.name == "ort")
        threads = available_cpus()
        assert (ort.usable, ort.precision, ort.reason, ort.remedy) == (True, "fp32", None, None)
        assert ort.device == f"CPUExecutionProvider, {threads} thread{'s' if threads > 1 else ''}"
        assert sum(backend.auto for backend in found.backends) == 1
        validate(found.to_json())

    def test_backends(self, backends):
        found = {backend.name: backend for backend in examine().backends}
        assert list(found) == ["fine", "falling", "breaking", "not-finite", "refusing"]
        assert [backend.name for backend in found.values() if backend.usable] == ["fine"]
        assert [backend.name for backend in found.values() if backend.auto] == ["fine"]
        assert (found["fine"].precision, found["fine"].device) == ("fp32", "numpy")
        assert (found["refusing"].reason, found["refusing"].remedy) == ("it has no engine", "pip install engine")
        assert (found["falling"].reason, found["falling"].remedy) == (
            "it would run on another device",
            "repair the driver",
        )
        assert found["breaking"].reason.startswith("KeyError: ")
        assert found["not-finite"].reason.startswith("EngineError: ")

    def test_an_intact_installation(self, backends):
        found = examine()
        assert found.version == __version__
        assert found.python.startswith(f"{platform.python_version()} ")
        assert found.packages["numpy"] == np.__version__
        assert "starlette" in found.packages  # of an extra
        assert [(model.name, model.place, model.verified) for model in found.models] == [
            ("frcrn-small", "packaged", True),
            ("frcrn-small-stream", "packaged", True),
            ("frcrn-16k", "absent", None),
        ]
        assert found.problems == ()
        assert found.cache == CacheReport(os.environ[CACHE_DIR_VARIABLE], False, True, 0, ())
        validate(found.to_json())

    def test_damaged_files(self, backends, empty_cache):
        path = keep_imported("mine", lambda path: path.write_bytes(find_model(DEFAULT_MODEL).path.read_bytes())).path
        (empty_cache / "notes.txt").write_text("12345")
        assert examine().problems == ()
        path.write_bytes(b"half of it")
        found = examine()
        assert found.cache.bytes == 15
        assert found.cache.files == (FileReport(path.name, 10, "damaged: import it again"),)
        mine = found.models[-1]
        assert (mine.name, mine.place, mine.verified) == ("mine", "imported", False)
        assert found.problems[0] == f"cached file {path.name}: damaged: import it again"
        assert found.problems[1].startswith("model mine: the imported model '")
        validate(found.to_json())

    def test_problems_of_the_installation(self, backends, empty_cache, monkeypatch):
        install(monkeypatch)
        monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
        empty_cache.write_text("a file in the way")
        problems = examine().problems
        assert [problem.split(":")[0] for problem in problems] == [
            "no backend can run",
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            f"the cache folder {empty_cache} cannot be written",
        ]

    def test_it_writes_nothing(self, backends, empty_cache):
        examine()
        assert not empty_cache.exists()


def validate(values: object) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(values, json.loads(SCHEMA_PATH.read_text()), jsonschema.Draft202012Validator)


class TestSchema:
    def test_it_is_a_valid_schema(self):
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.Draft202012Validator.check_schema(json.loads(SCHEMA_PATH.read_text()))

    def test_it_refuses_missing_and_unknown_fields(self, backends):
        jsonschema = pytest.importorskip("jsonschema")
        values = examine().to_json()
        validate(values)
        for field in values:
            with pytest.raises(jsonschema.ValidationError, match=f"'{field}' is a required property"):
                validate({name: value for name, value in values.items() if name != field})
        with pytest.raises(jsonschema.ValidationError, match="Additional properties"):
            validate({**values, "hostname": "box"})

    def test_every_field_is_described(self):
        def check(schema: dict, where: str) -> None:
            for name, field in schema.get("properties", {}).items():
                assert field.get("description") or field.get("items"), f"{where}.{name}"
                check(field.get("items", field), f"{where}.{name}")

        check(json.loads(SCHEMA_PATH.read_text()), "")

    def test_the_documentation_names_every_field(self):
        text = (Path(__file__).parents[1] / "docs" / "doctor.md").read_text(encoding="utf-8")
        schema = json.loads(SCHEMA_PATH.read_text())
        for name, field in schema["properties"].items():
            assert f"`{name}`" in text, name
            for inner in field.get("items", field).get("properties", {}):
                assert f"`{inner}`" in text, f"{name}.{inner}"


class TestPrivacy:
    @pytest.fixture(autouse=True)
    def somebody(self, monkeypatch):
        monkeypatch.setattr(Path, "home", lambda: Path("/home/alice"))
        monkeypatch.setattr(getpass, "getuser", lambda: "alice")
        monkeypatch.setattr(socket, "gethostname", lambda: "wonderland.example.org")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("/home/alice", "~"),
            ("in '/home/alice/.cache/frcrn-accel'", "in '~/.cache/frcrn-accel'"),
            ("/home/alice2/x", "/home/alice2/x"),
            ("/mnt/home/alice/x", "/mnt/home/<user>/x"),
            ("/data/alice/x: /scratch/ALICE", "/data/<user>/x: /scratch/<user>"),
            ("//wonderland/share, \\\\wonderland.example.org\\share", "//<host>/share, \\\\<host>\\share"),
            ("alice in wonderland", "alice in wonderland"),
            ("", ""),
        ],
    )
    def test_texts(self, text, expected):
        assert without_names(text) == expected

    def test_nested_values(self):
        values = {"/home/alice/a": [("/home/alice/b", 1), {"c": None}], "d": True}
        assert without_names(values) == {"~/a": [["~/b", 1], {"c": None}], "d": True}

    def test_a_user_without_a_home_and_a_name(self, monkeypatch):
        def fail() -> None:
            raise RuntimeError("no home")

        def nameless() -> None:
            raise OSError("no name")

        monkeypatch.setattr(Path, "home", fail)
        monkeypatch.setattr(getpass, "getuser", nameless)
        assert without_names("/home/alice //wonderland/x") == "/home/alice //<host>/x"

    def test_a_home_that_is_the_root(self, monkeypatch):
        monkeypatch.setattr(Path, "home", lambda: Path("/"))
        assert without_names("/opt/x") == "/opt/x"

    def test_a_report(self, backends, tmp_path, monkeypatch):
        home = tmp_path / "alice"
        monkeypatch.setattr(Path, "home", lambda: home)
        monkeypatch.setenv(CACHE_DIR_VARIABLE, str(home / "cache"))
        path = keep_imported("mine", lambda path: path.write_bytes(find_model(DEFAULT_MODEL).path.read_bytes())).path
        path.write_bytes(b"half of it")
        found = examine()
        values = found.to_json()
        assert str(home) in str(dataclasses.asdict(found))
        assert values["cache"]["folder"] == "~/cache"
        assert "'~/cache/mine-imported-" in values["models"][-1]["problem"]
        breaking = next(backend for backend in values["backends"] if backend["name"] == "breaking")
        assert breaking["reason"] == "KeyError: '~/engine.so'"
        text = json.dumps(values)
        assert str(home) not in text
        assert "alice" not in text
        assert "wonderland" not in text


class TestCpu:
    @pytest.fixture
    def brand(self, monkeypatch) -> None:
        """Give the CPU a brand name on every machine."""
        monkeypatch.setattr("archspec.cpu.brand_string", lambda: "A CPU")

    def test_a_system_that_forbids_reading_the_brand(self, monkeypatch):
        def fail() -> None:
            raise PermissionError("no executable memory")

        monkeypatch.setattr("archspec.cpu.brand_string", fail)
        assert examine_cpu().model is None

    @pytest.mark.parametrize(
        ("machine_name", "flags", "features", "int8", "bf16"),
        [
            ("x86_64", {"avx2", "sse2"}, {"AVX2"}, "not with ONNX Runtime: without AVX-512 VNNI", "not in hardware"),
            (
                "AMD64",
                {"avx2", "avx512f", "avx512_vnni"},
                {"AVX2", "AVX-512", "AVX-512 VNNI"},
                "runs on exact 8-bit products (AVX-512 VNNI)",
                "not in hardware: 'openvino' computes in fp32",
            ),
            (
                "x86_64",
                {"avx2", "avx_vnni", "amx_int8", "amx_bf16"},
                {"AVX2", "AVX-VNNI", "AMX INT8", "AMX BF16"},
                "runs on exact 8-bit products (AVX-VNNI, AMX INT8)",
                "fast (AMX BF16): the default of 'openvino'",
            ),
            ("aarch64", {"asimd"}, {"NEON"}, "no 8-bit dot products in hardware", "up to OpenVINO"),
            (
                "arm64",
                {"asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"},
                {"NEON", "half precision", "dot product", "i8mm", "BF16", "SVE"},
                "8-bit products in hardware (dot product, i8mm)",
                "up to OpenVINO",
            ),
            ("riscv64", {"v"}, set(), "not known for this architecture", "up to OpenVINO"),
        ],
    )
    def test_what_features_mean(self, brand, monkeypatch, machine_name, flags, features, int8, bf16):
        monkeypatch.setattr(platform, "machine", lambda: machine_name)
        monkeypatch.setattr(platform, "system", lambda: "a system that lists no features of Arm")
        monkeypatch.setattr("archspec.cpu.detect.detected_info", lambda: types.SimpleNamespace(features=flags))
        found = examine_cpu()
        assert {name for name, has in found.features.items() if has} == features
        assert found.int8.startswith(int8)
        assert found.bf16.startswith(bf16)
        assert found.model == "A CPU"

    def test_features_come_from_the_chip_if_the_system_lists_none(self, brand, monkeypatch):
        monkeypatch.setattr(platform, "machine", lambda: "arm64")
        monkeypatch.setattr(platform, "system", lambda: "a system that lists no features of Arm")
        monkeypatch.setattr("archspec.cpu.detect.detected_info", lambda: types.SimpleNamespace(features=set()))
        monkeypatch.setattr("archspec.cpu.host", lambda: types.SimpleNamespace(features={"asimddp"}))
        assert {name for name, has in examine_cpu().features.items() if has} == {"dot product"}

    def test_this_machine(self):
        found = examine_cpu()
        assert found.threads == available_cpus()
        assert found.logical_cpus == os.cpu_count()
        assert found.affinity_cpus is None or found.affinity_cpus == len(os.sched_getaffinity(0))

    def test_the_engine_agrees_about_exact_products(self):
        pytest.importorskip("onnxruntime")
        found = examine_cpu()
        if found.architecture != "x86_64":
            pytest.skip("the features decide it on x86-64 only")
        problems = {status.name: status.problem for status in backend_statuses()}
        assert found.int8.startswith("runs on exact") == (problems["ort-dynamic-int8"] is None)


class FakeNvml(types.ModuleType):
    """NVIDIA's bindings with one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails: str = "") -> None:
        super().__init__("pynvml")
        self.fails = fails
        self.shut_down = 0

    def __getattr__(self, name: str):
        answers = {
            "nvmlInit": None,
            "nvmlSystemGetDriverVersion": "575.57.08",
            "nvmlSystemGetCudaDriverVersion_v2": 12_090,
            "nvmlDeviceGetCount": 1,
            "nvmlDeviceGetHandleByIndex": "handle",
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
            "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3",
            "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=85_520_809_984),
        }
        if name not in answers:
            raise AttributeError(name)

        def call(*_: object) -> object:
            if name == self.fails:
                raise self.NVMLError(f"{name} failed")
            return answers[name]

        return call

    def nvmlShutdown(self) -> None:
        self.shut_down += 1


class TestGpu:
    def test_one_gpu(self, monkeypatch):
        nvml = FakeNvml()
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        found = examine_gpu()
        assert (found.driver, found.driver_cuda, found.problem) == ("575.57.08", "12.9", None)
        assert found.devices == (GpuDevice("NVIDIA H100 80GB HBM3", 85_521, "9.0"),)
        assert nvml.shut_down == 1

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pynvml", None)
        found = examine_gpu()
        assert (found.driver, found.devices) == (None, ())
        assert found.problem == "not examined: pip install nvidia-ml-py, which the extras for GPUs bring"

    def test_no_gpu(self, monkeypatch):
        nvml = FakeNvml(fails="nvmlInit")
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        found = examine_gpu()
        assert (found.driver, found.devices, found.problem) == (None, (), "nvmlInit failed")
        assert nvml.shut_down == 0

    def test_a_driver_that_stops_answering(self, monkeypatch):
        nvml = FakeNvml(fails="nvmlDeviceGetName")
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        found = examine_gpu()
        assert (found.driver, found.problem) == ("575.57.08", "nvmlDeviceGetName failed")
        assert nvml.shut_down == 1

    def test_packages_and_libraries(self, monkeypatch):
        installed = {"nvidia_cudnn_cu12": "9.1", "NVIDIA-cuda-runtime-cu12": "12.4", "tensorrt": "10.3", "numpy": "2"}
        monkeypatch.setattr(
            "frcrn_accel.doctor.machine.distributions",
            lambda: [types.SimpleNamespace(metadata={"Name": name}, version=v) for name, v in installed.items()],
        )
        monkeypatch.setattr("ctypes.util.find_library", lambda name: {"cudnn": "libcudnn.so.9"}.get(name))
        found = examine_gpu()
        assert found.packages == {"nvidia-cuda-runtime-cu12": "12.4", "nvidia-cudnn-cu12": "9.1", "tensorrt": "10.3"}
        assert found.libraries == {"cudart": None, "cublas": None, "cudnn": "libcudnn.so.9", "nvinfer": None}
