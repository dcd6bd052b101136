"""Examine a machine: CPU features that decide what is fast, CPUs this process may use, and GPUs."""

from __future__ import annotations

import ctypes.util
import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions

from frcrn_accel.cpu import affinity_cpus, available_cpus, quota_cpus
from frcrn_accel.doctor.arm import arm_flags

__all__ = ["CpuReport", "GpuDevice", "GpuReport", "examine_cpu", "examine_gpu", "explain_bf16", "explain_int8"]

X86, ARM = "x86_64", "aarch64"
_ARCHITECTURES = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM, "ARM64": ARM}
# From the names in the report to the flags of Linux, which archspec and `arm_flags` use on every system.
_FEATURES = {
    X86: {
        "AVX2": "avx2",
        "AVX-512": "avx512f",
        "AVX-512 VNNI": "avx512_vnni",
        "AVX-VNNI": "avx_vnni",
        "AVX-512 BF16": "avx512_bf16",
        "AMX INT8": "amx_int8",
        "AMX BF16": "amx_bf16",
    },
    ARM: {
        "NEON": "asimd",
        "half precision": "asimdhp",
        "dot product": "asimddp",
        "i8mm": "i8mm",
        "BF16": "bf16",
        "SVE": "sve",
    },
}
_EXACT_PRODUCTS = ("AVX-512 VNNI", "AVX-VNNI", "AMX INT8")
_BF16 = ("AVX-512 BF16", "AMX BF16")
_GPU_PACKAGES = ("nvidia-cu", "nvidia-nv", "tensorrt", "onnxruntime-gpu")
_GPU_LIBRARIES = ("cudart", "cublas", "cudnn", "nvinfer")


@dataclass(frozen=True)
class CpuReport:
    """The CPU and this process's share of it.

    Attributes:
        model: Brand name that the CPU reports; None if it reports none.
        architecture: "x86_64", "aarch64" or the name that the system uses.
        features: Features that matter for this library, and whether the CPU has them; empty for other architectures.
        int8: What the features mean for INT8.
        bf16: What the features mean for bfloat16.
        logical_cpus: CPUs of the machine.
        affinity_cpus: CPUs that this process is allowed on; None if the system has no such limit.
        quota_cpus: CPUs that the container may use, rounded up; None without a quota.
        threads: Threads that engines compute with by default.
    """

    model: str | None
    architecture: str
    features: dict[str, bool]
    int8: str
    bf16: str
    logical_cpus: int | None
    affinity_cpus: int | None
    quota_cpus: int | None
    threads: int


@dataclass(frozen=True)
class GpuDevice:
    """One NVIDIA GPU.

    Attributes:
        name: Name of the GPU.
        memory_mb: Memory, in units of 1e6 bytes.
        compute_capability: Compute capability, e.g. "9.0".
    """

    name: str
    memory_mb: int
    compute_capability: str


@dataclass(frozen=True)
class GpuReport:
    """NVIDIA GPUs and the software for them. Only the driver's management library is loaded to find out.

    Attributes:
        driver: Version of the driver; None without one.
        driver_cuda: Newest CUDA version that the driver supports; None without a driver.
        problem: Why the driver cannot be queried; None if it can.
        devices: The GPUs.
        packages: Versions of the Python packages that contain CUDA, cuDNN and TensorRT.
        libraries: Files of the same libraries that the system's loader finds; None for those it does not find.
    """

    driver: str | None
    driver_cuda: str | None
    problem: str | None
    devices: tuple[GpuDevice, ...]
    packages: dict[str, str]
    libraries: dict[str, str | None]


def examine_cpu() -> CpuReport:
    """Examine the CPU."""
    import archspec.cpu
    from archspec.cpu.detect import detected_info

    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    flags: Collection[str] = arm_flags(platform.system()) if architecture == ARM else ()
    # Where a system lists no features of an Arm CPU, archspec may know them by the name of the chip.
    flags = flags or detected_info().features or archspec.cpu.host().features
    features = {label: flag in flags for label, flag in _FEATURES.get(architecture, {}).items()}
    return CpuReport(
        model=_brand(),
        architecture=architecture,
        features=features,
        int8=explain_int8(architecture, features),
        bf16=explain_bf16(architecture, features),
        logical_cpus=os.cpu_count(),
        affinity_cpus=affinity_cpus(),
        quota_cpus=quota_cpus(),
        threads=available_cpus(),
    )


def _brand() -> str | None:
    import archspec.cpu

    try:
        brand: str | None = archspec.cpu.brand_string()
    except OSError:  # archspec executes a few bytes of machine code, which hardened systems forbid
        return None
    return brand


def explain_int8(architecture: str, features: Mapping[str, bool]) -> str:
    """Explain what the features of a CPU mean for INT8."""
    if architecture == X86:
        exact = [label for label in _EXACT_PRODUCTS if features[label]]
        if exact:
            return f"runs on exact 8-bit products ({', '.join(exact)})"
        return (
            "not with ONNX Runtime: without AVX-512 VNNI, AVX-VNNI or AMX its sums of 8-bit products overflow, so "
            "'ort-dynamic-int8' and 'ort-static-int8' refuse to run"
        )
    if architecture == ARM:
        found = [label for label in ("dot product", "i8mm") if features[label]]
        return (
            f"8-bit products in hardware ({', '.join(found)}); its speed on Arm has not been measured"
            if found
            else "no 8-bit dot products in hardware: it is unlikely to be faster than fp32"
        )
    return "not known for this architecture: 'ort-dynamic-int8' and 'ort-static-int8' test it when they start"


def explain_bf16(architecture: str, features: Mapping[str, bool]) -> str:
    """Explain what the features of a CPU mean for bfloat16."""
    if architecture == X86:
        found = [label for label in _BF16 if features[label]]
        if found:
            return f"fast ({', '.join(found)}): the default of 'openvino'"
        return "not in hardware: 'openvino' computes in fp32"
    return "up to OpenVINO: 'openvino' asks it what the CPU supports"


def examine_gpu() -> GpuReport:
    """Examine the NVIDIA GPUs."""
    found_packages = {
        name: found.version
        for found in distributions()
        if (name := (found.metadata["Name"] or "").lower().replace("_", "-")).startswith(_GPU_PACKAGES)
    }
    packages = dict(sorted(found_packages.items()))
    libraries = {name: ctypes.util.find_library(name) for name in _GPU_LIBRARIES}
    try:
        import pynvml
    except ImportError:
        missing = "not examined: pip install nvidia-ml-py, which the extras for GPUs bring"
        return GpuReport(None, None, missing, (), packages, libraries)
    driver = driver_cuda = problem = None
    devices: list[GpuDevice] = []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReport(None, None, str(error), (), packages, libraries)
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        version = pynvml.nvmlSystemGetCudaDriverVersion_v2()  # 12040 for 12.4
        driver_cuda = f"{version // 1000}.{version % 1000 // 10}"
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(device)
            devices.append(
                GpuDevice(
                    name=pynvml.nvmlDeviceGetName(device),
                    memory_mb=round(pynvml.nvmlDeviceGetMemoryInfo(device).total / 1e6),
                    compute_capability=f"{major}.{minor}",
                )
            )
    except pynvml.NVMLError as error:
        problem = str(error)
    finally:
        pynvml.nvmlShutdown()
    return GpuReport(driver, driver_cuda, problem, tuple(devices), packages, libraries)
