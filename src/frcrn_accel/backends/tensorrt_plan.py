"""Building TensorRT plans: from a model file to what a card runs. No card is needed for it.

NVIDIA has two packages with one API: `tensorrt` for data centres, which builds for the card in the machine, and
`tensorrt_rtx` for RTX cards, which builds for any. What they call a plan is kept in a file of this library with a
line in front of it that says what it was built of and for (`Target`), so that a plan for something else is refused
before the engine sees it.

A plan has two profiles: one for windows of one length, the one that long audio is cut into, and one for any shorter
length. Both take a batch of 1 to `max_batch`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from frcrn_accel.backends.gpu import check_gpu_file
from frcrn_accel.digest import sha256_of
from frcrn_accel.errors import BackendUnavailable, EngineError, ModelError
from frcrn_accel.models import TENSORRT_INT8, ModelFile, ModelMetadata

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = [
    "PLAN_SUFFIX",
    "BuildLog",
    "Plan",
    "Target",
    "build_plan",
    "check_compute_capabilities",
    "import_package",
    "plan_target",
]

PLAN_SUFFIX = ".plan"
DATA_CENTRE, RTX = "tensorrt", "tensorrt_rtx"  # modules
_MAGIC = "frcrn-accel plan"
_MAX_HEADER_BYTES = 4096
_TYPICAL_BATCH = 1  # of a short file: what the second profile is tuned for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """What decides whether a plan can be used.

    Attributes:
        model_sha256: Digest of the model file, hexadecimal.
        package: `"tensorrt"` or `"tensorrt_rtx"`.
        package_version: Its version: plans of another one are not read.
        gpu: Name of the card; "" for every card of a compute capability.
        compute_capabilities: Architectures, e.g. `("8.9",)`.
        precision: `"fp32"`, `"fp16"` or `"int8"`.
        longest_window_samples: Length of the windows of the first profile, the longest that it takes.
        max_batch: Most windows at a time.
    """

    model_sha256: str
    package: str
    package_version: str
    gpu: str
    compute_capabilities: tuple[str, ...]
    precision: str
    longest_window_samples: int
    max_batch: int

    def to_key(self) -> dict[str, str]:
        """For the name of a cached file."""
        return {"plan": json.dumps(dataclasses.asdict(self), sort_keys=True)}

    def mismatch(self, wanted: Target) -> str:
        """Why a plan of this target cannot be used for another one; "" if it can."""
        for field in dataclasses.fields(self):
            has, wants = getattr(self, field.name), getattr(wanted, field.name)
            if field.name == "compute_capabilities":
                fits = set(wants) <= set(has)
            elif field.name == "max_batch":
                fits = has >= wants
            else:
                fits = has == wants or (field.name == "gpu" and not has)
            if not fits:
                return f"its {field.name} is {has!r}, and {wants!r} is needed"
        return ""


@dataclass(frozen=True)
class Plan:
    """A plan and what it is for.

    Attributes:
        target: What it is for.
        content: What TensorRT reads.
    """

    target: Target
    content: bytes

    def write(self, path: Path) -> None:
        """Put both into a file."""
        header = json.dumps({"format": _MAGIC, **dataclasses.asdict(self.target)}).encode()
        with path.open("wb") as file:
            file.write(header + b"\n")
            file.write(self.content)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a file.

        Raises:
            ModelError: It cannot be read, or is no such file.
        """
        try:
            with path.open("rb") as file:
                header = json.loads(file.readline(_MAX_HEADER_BYTES))
                content = file.read()
            if not isinstance(header, dict) or header.pop("format", None) != _MAGIC or not content:
                raise ValueError("no header")
            if "window_samples" in header:  # version 0.1.0
                header["longest_window_samples"] = header.pop("window_samples")
            header["compute_capabilities"] = tuple(header["compute_capabilities"])
            return cls(Target(**header), content)
        except OSError as error:
            raise ModelError(f"plan {str(path)!r} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{str(path)!r} is no plan made by 'frcrn-accel build-engine'") from error


class BuildLog:
    """Keeps what TensorRT says.

    Attributes:
        errors: Its errors.
        details: Everything, if that was asked for: of a detailed build, with every layer of the plan.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.details: list[str] = []

    def activation_bytes(self) -> int:
        """Memory for what is between the layers, at the largest batch of the first profile."""
        mark = "Total Activation Memory: "
        found = [line for line in self.details if line.startswith(mark)]
        return int(found[0].removeprefix(mark).split()[0])


def import_package(package: str) -> ModuleType:
    """One of the packages.

    Raises:
        ImportError: It is not installed, or not whole.
    """
    module = importlib.import_module(package)
    if not hasattr(module, "Builder"):  # a folder of that name is left, or of type stubs alone
        raise ImportError(f"the package {package!r} is incomplete")
    return module


def plan_target(
    model: ModelFile,
    package: str,
    precision: str,
    compute_capabilities: Sequence[str],
    *,
    longest_window_samples: int,
    max_batch: int,
    gpu: str = "",
) -> Target:
    """The target for a model and the installed version of a package."""
    return Target(
        model_sha256=sha256_of(model.path),
        package=package,
        package_version=import_package(package).__version__,
        gpu=gpu,
        compute_capabilities=tuple(compute_capabilities),
        precision=precision,
        longest_window_samples=longest_window_samples,
        max_batch=max_batch,
    )


def build_plan(
    model: ModelFile, target: Target, *, build_log: BuildLog | None = None, detailed: bool = False
) -> Plan:
    """Build.

    Args:
        model: The file that `TensorRtBackend.recipe` asks for.
        target: What for.
        build_log: Gets what TensorRT says.
        detailed: Let it say everything.

    Raises:
        ModelError: TensorRT cannot read the model, e.g. for an operator that it does not have.
        BackendUnavailable: The package cannot build for these compute capabilities, or not without a card.
        EngineError: Building failed.
    """
    build_log = build_log or BuildLog()
    _check_file(model, target.precision)
    content = _folded(model.path.read_bytes())
    log.info("building a TensorRT plan of %s (%s): this can take minutes", model.metadata.name, target.precision)
    return Plan(target, _build(content, model, target, build_log, detailed=detailed))


def make_logger(package: ModuleType, build_log: BuildLog, *, detailed: bool = False) -> trt.ILogger:
    """A logger that keeps errors, and everything if asked."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = package
    lock = threading.Lock()

    class Logger(trt.ILogger):  # type: ignore[misc, unused-ignore]  # without the stubs: Any
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            with lock:  # layers are built by several threads
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    build_log.errors.append(msg)
                if detailed:
                    build_log.details.append(msg)

    return Logger()


def _check_file(model: ModelFile, precision: str) -> None:
    if precision != "int8":
        check_gpu_file(model, precision)
    elif ModelFile.open(model.path).metadata.method != TENSORRT_INT8:
        raise ModelError(
            f"{str(model.path)!r} ({model.metadata.method}) is not quantized for TensorRT: run 'frcrn-accel quantize "
            f"FP32.onnx OUT.onnx --method {TENSORRT_INT8} --calibration DIR' and give OUT.onnx"
        )


def _folded(content: bytes) -> bytes:
    import onnx

    from frcrn_accel.graph.fold import fold_constants

    folded: bytes = fold_constants(onnx.load_from_string(content)).SerializeToString()
    return folded


def _build(content: bytes, model: ModelFile, target: Target, build_log: BuildLog, *, detailed: bool) -> bytes:
    package = import_package(target.package)
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = package
    logger = make_logger(package, build_log, detailed=detailed)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # what is left of a factory that gave nothing
        raise BackendUnavailable(
            target.package.replace("_", "-"), _last(build_log, str(error)), "build where a GPU is"
        ) from error
    # The types are those in the file: the writer of each precision has put them where they belong.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        told = "; ".join(f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors)
        raise ModelError(f"TensorRT cannot read {str(model.path)!r}: {told or _last(build_log, 'no reason given')}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is fp32
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if target.package == RTX:
        _set_compute_capabilities(package, config, target)
    elif not target.gpu:
        raise BackendUnavailable(
            target.package.replace("_", "-"),
            "this package builds for the card in the machine only",
            "build there, or with tensorrt-rtx, which builds for any RTX card",
        )
    for least, best, most in _profiles(target, model.metadata):
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, trt.Dims(least), trt.Dims(best), trt.Dims(most))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT cannot build {str(model.path)!r}: {_last(build_log, 'no reason given')}")
    return bytes(memoryview(plan))


def _profiles(target: Target, metadata: ModelMetadata) -> list[tuple[list[int], list[int], list[int]]]:
    """Shapes `(batch, samples)`, least, best and most."""
    most = [target.max_batch, target.longest_window_samples]
    half = target.longest_window_samples // 2 // metadata.hop_samples * metadata.hop_samples
    return [
        ([1, target.longest_window_samples], most, most),
        ([1, metadata.frame_samples], [_TYPICAL_BATCH, half], most),
    ]


def check_compute_capabilities(package: str, compute_capabilities: Sequence[str]) -> None:
    """Whether a package knows these architectures; the one for data centres is asked when it builds.

    Raises:
        BackendUnavailable: It does not.
    """
    if package != RTX:
        return
    known = import_package(package).ComputeCapability.__members__
    for name in compute_capabilities:
        if _member(name) not in known:
            there = [f"{other[2:-1]}.{other[-1]}" for other in known if other.startswith("SM")]
            raise BackendUnavailable(
                package.replace("_", "-"),
                f"it does not build for compute capability {name}",
                f"choose one of {', '.join(there)}; for cards of data centres there are 'tensorrt' and 'ort-cuda'",
            )


def _member(compute_capability: str) -> str:
    """What the RTX package calls it."""
    return f"SM{compute_capability.replace('.', '')}"


def _set_compute_capabilities(package: ModuleType, config: Any, target: Target) -> None:
    """Of the RTX package; type stubs know of the other only."""
    check_compute_capabilities(target.package, target.compute_capabilities)
    config.num_compute_capabilities = len(target.compute_capabilities)
    for index, name in enumerate(target.compute_capabilities):
        config.set_compute_capability(package.ComputeCapability.__members__[_member(name)], index)


def _last(build_log: BuildLog, otherwise: str) -> str:
    """The last error, in one line."""
    return " ".join(build_log.errors[-1].split()) if build_log.errors else otherwise
