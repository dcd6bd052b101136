"""Build TensorRT plans: compile a model file for a GPU. The RTX package needs no GPU for this.

NVIDIA has two packages with one API: `tensorrt` for data centres, which builds for the GPU in the machine, and
`tensorrt_rtx` for RTX GPUs, which builds for any of them. This library stores a plan behind a header line that says
what it was built from and for (`Target`), so that a plan that does not fit is refused before the engine reads it.

A plan has two profiles: one for the window length that long audio is cut into, and one for any shorter length. Both
take a batch of 1 to `max_batch`.
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
_TYPICAL_BATCH = 1  # of a short file, for which the second profile is tuned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Everything that decides whether a plan fits.

    Attributes:
        model_sha256: Digest of the model file, hexadecimal.
        package: `"tensorrt"` or `"tensorrt_rtx"`.
        package_version: Version of the package; plans of other versions cannot be read.
        gpu: Name of the GPU; "" for every GPU of the compute capabilities.
        compute_capabilities: Architectures, e.g. `("8.9",)`.
        precision: `"fp32"`, `"fp16"` or `"int8"`.
        longest_window_samples: Window length of the first profile, the longest that the plan takes.
        max_batch: Maximum number of windows per call.
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
        """Return the cache key of the plan."""
        return {"plan": json.dumps(dataclasses.asdict(self), sort_keys=True)}

    def mismatch(self, wanted: Target) -> str:
        """Return why a plan for this target does not fit another target; "" if it does."""
        for field in dataclasses.fields(self):
            has, wants = getattr(self, field.name), getattr(wanted, field.name)
            if field.name == "compute_capabilities":
                fits = set(wants) <= set(has)
            elif field.name == "max_batch":
                fits = has >= wants
            else:
                fits = has == wants or (field.name == "gpu" and not has)
            if not fits:
                return f"its {field.name} is {has!r}, but {wants!r} is needed"
        return ""


@dataclass(frozen=True)
class Plan:
    """A plan and its target.

    Attributes:
        target: The target that it was built for.
        content: The serialized engine.
    """

    target: Target
    content: bytes

    def write(self, path: Path) -> None:
        """Write the target, as a header, and the content to a file."""
        header = json.dumps({"format": _MAGIC, **dataclasses.asdict(self.target)}).encode()
        with path.open("wb") as file:
            file.write(header + b"\n")
            file.write(self.content)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a file that `write` wrote.

        Raises:
            ModelError: The file cannot be read, or is not a plan of this library.
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
            raise ModelError(f"{str(path)!r} is not a plan built by 'frcrn-accel build-engine'") from error


class BuildLog:
    """Collects TensorRT's messages.

    Attributes:
        errors: Error messages.
        details: All messages of a detailed build, with every layer of the plan.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.details: list[str] = []

    def last_error(self, otherwise: str) -> str:
        """Return the last error on one line, or `otherwise` if none was logged."""
        return " ".join(self.errors[-1].split()) if self.errors else otherwise

    def activation_bytes(self) -> int:
        """Return the memory for activations at the largest batch of the first profile."""
        mark = "Total Activation Memory: "
        found = [line for line in self.details if line.startswith(mark)]
        return int(found[0].removeprefix(mark).split()[0])


def import_package(package: str) -> ModuleType:
    """Import one of NVIDIA's packages.

    Raises:
        ImportError: It is not installed, or incomplete.
    """
    module = importlib.import_module(package)
    if not hasattr(module, "Builder"):  # an empty folder or type stubs with the package's name
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
    """Return the target for a model and the installed version of a package."""
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
    """Build a plan.

    Args:
        model: The file that `TensorRtBackend.recipe` asks for.
        target: The target to build for.
        build_log: Collects TensorRT's messages.
        detailed: Collect all messages instead of errors only.

    Raises:
        ModelError: TensorRT cannot read the model, for example because it lacks an operator.
        BackendUnavailable: The package cannot build for these compute capabilities, or needs the GPU in the machine.
        EngineError: Building failed.
    """
    build_log = build_log or BuildLog()
    _check_file(model, target.precision)
    content = _folded(model.path.read_bytes())
    log.info(
        "building a TensorRT plan of %s (%s); this is done once and can take minutes",
        model.metadata.name,
        target.precision,
    )
    return Plan(target, _build(content, model, target, build_log, detailed=detailed))


def make_logger(package: ModuleType, build_log: BuildLog, *, detailed: bool = False) -> trt.ILogger:
    """Return a TensorRT logger that collects errors, or all messages."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = package
    lock = threading.Lock()

    class Logger(trt.ILogger):  # type: ignore[misc, unused-ignore]  # without the stubs: Any
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            with lock:  # several threads build layers
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
    except TypeError as error:  # TensorRT's factory returned nothing
        raise BackendUnavailable(
            target.package.replace("_", "-"),
            build_log.last_error(str(error)),
            "build on a machine with an NVIDIA GPU",
        ) from error
    # Types are taken from the file, whose writer has chosen the precision of each tensor.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        problems = "; ".join(f"{error.node_operator()} {error.node_name()!r}: {error.desc()}" for error in errors)
        reason = problems or build_log.last_error("no reason given")
        raise ModelError(f"TensorRT cannot read {str(model.path)!r}: {reason}")
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # it would compute fp32 with 10 bits of mantissa
    if detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if target.package == RTX:
        _set_compute_capabilities(package, config, target)
    elif not target.gpu:
        raise BackendUnavailable(
            target.package.replace("_", "-"),
            "this package builds for the GPU in the machine only",
            "build on the target machine, or with tensorrt-rtx, which builds for any RTX GPU",
        )
    for least, best, most in _profiles(target, model.metadata):
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, trt.Dims(least), trt.Dims(best), trt.Dims(most))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT cannot build {str(model.path)!r}: {build_log.last_error('no reason given')}")
    return bytes(memoryview(plan))


def _profiles(target: Target, metadata: ModelMetadata) -> list[tuple[list[int], list[int], list[int]]]:
    """Return the least, best and largest shape `(batch, samples)` of each profile."""
    most = [target.max_batch, target.longest_window_samples]
    half = target.longest_window_samples // 2 // metadata.hop_samples * metadata.hop_samples
    return [
        ([1, target.longest_window_samples], most, most),
        ([1, metadata.frame_samples], [_TYPICAL_BATCH, half], most),
    ]


def check_compute_capabilities(package: str, compute_capabilities: Sequence[str]) -> None:
    """Check that a package supports these architectures; the one for data centres reports that when it builds.

    Raises:
        BackendUnavailable: It does not support one of them.
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
                f"choose one of {', '.join(there)}; for data-centre GPUs use 'tensorrt' or 'ort-cuda'",
            )


def _member(compute_capability: str) -> str:
    """Return the RTX package's name for a compute capability."""
    return f"SM{compute_capability.replace('.', '')}"


def _set_compute_capabilities(package: ModuleType, config: Any, target: Target) -> None:
    """Set the architectures to build for. The type stubs lack these names of the RTX package."""
    check_compute_capabilities(target.package, target.compute_capabilities)
    config.num_compute_capabilities = len(target.compute_capabilities)
    for index, name in enumerate(target.compute_capabilities):
        config.set_compute_capability(package.ComputeCapability.__members__[_member(name)], index)
