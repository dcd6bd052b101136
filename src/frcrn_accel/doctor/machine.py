"""What a machine has: the features of its CPU that decide what is fast here, its share of it, and its GPUs."""

from __future__ import annotations

import ctypes.util
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions

from frcrn_accel.cpu import affinity_cpus, available_cpus, quota_cpus

__all__ = ["CpuReport", "GpuDevice", "GpuReport", "examine_cpu", "examine_gpu", "what_bf16_means", "what_int8_means"]

X86, ARM = "x86_64", "aarch64"
_ARCHITECTURES = {"x86_64": X86, "AMD64": X86, "aarch64": ARM, "arm64": ARM, "ARM64": ARM}
# By what they are called in this report, the flags of Linux, which archspec uses on every system.
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
    ARM: {"dot product": "asimddp", "i8mm": "i8mm", "BF16": "bf16"},
}
_EXACT_PRODUCTS = ("AVX-512 VNNI", "AVX-VNNI", "AMX INT8")
_BF16 = ("AVX-512 BF16", "AMX BF16")
_GPU_PACKAGES = ("nvidia-cu", "nvidia-nv", "tensorrt", "onnxruntime-gpu")
_GPU_LIBRARIES = ("cudart", "cublas", "cudnn", "nvinfer")


@dataclass(frozen=True)
class CpuReport:
    """The CPU and this process's share of it.

    Attributes:
        model: What it calls itself; None if it does not say.
        architecture: "x86_64", "aarch64" or what the system calls it.
        features: The features that matter here, and whether it has them; empty for other architectures.
        int8: What they mean for INT8.
        bf16: What they mean for bfloat16.
        logical_cpus: Of the machine.
        affinity_cpus: That this process is allowed on; None where systems have no such thing.
        quota_cpus: That its container may use, rounded up; None without a quota.
        threads: That engines compute with unless told otherwise.
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
        name: Its name.
        memory_mb: Its memory, 1e6 bytes.
        compute_capability: E.g. "9.0".
    """

    name: str
    memory_mb: int
    compute_capability: str


@dataclass(frozen=True)
class GpuReport:
    """NVIDIA GPUs and what is installed for them. Nothing of it is loaded but the driver's management library.

    Attributes:
        driver: Version of the driver; None without one.
        driver_cuda: The newest CUDA that the driver runs; None without a driver.
        problem: Why the driver does not answer; None if it does.
        devices: The GPUs.
        packages: Versions of the Python packages that bring CUDA, cuDNN and TensorRT.
        libraries: Files of the same libraries that the system's loader finds; None for those it does not.
    """

    driver: str | None
    driver_cuda: str | None
    problem: str | None
    devices: tuple[GpuDevice, ...]
    packages: dict[str, str]
    libraries: dict[str, str | None]


def examine_cpu() -> CpuReport:
    """Look at the CPU."""
    import archspec.cpu
    from archspec.cpu.detect import detected_info

    architecture = _ARCHITECTURES.get(platform.machine(), platform.machine())
    # What the system lists; macOS lists nothing for its own chips, but those are known by name.
    flags = detected_info().features or archspec.cpu.host().features
    features = {label: flag in flags for label, flag in _FEATURES.get(architecture, {}).items()}
    return CpuReport(
        model=_brand(),
        architecture=architecture,
        features=features,
        int8=what_int8_means(architecture, features),
        bf16=what_bf16_means(architecture, features),
        logical_cpus=os.cpu_count(),
        affinity_cpus=affinity_cpus(),
        quota_cpus=quota_cpus(),
        threads=available_cpus(),
    )


def _brand() -> str | None:
    import archspec.cpu

    try:
        brand: str | None = archspec.cpu.brand_string()
    except OSError:  # it executes a few bytes of its own, which hardened systems do not allow
        return None
    return brand


def what_int8_means(architecture: str, features: Mapping[str, bool]) -> str:
    """What the features of a CPU mean for INT8, in one sentence."""
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
            f"8-bit products in hardware ({', '.join(found)}); this project has not measured it on Arm"
            if found
            else "no 8-bit products in hardware: it is unlikely to be faster than fp32"
        )
    return "not known for this architecture: 'ort-dynamic-int8' and 'ort-static-int8' try it out when they start"


def what_bf16_means(architecture: str, features: Mapping[str, bool]) -> str:
    """What the features of a CPU mean for bfloat16, in one sentence."""
    if architecture == X86:
        found = [label for label in _BF16 if features[label]]
        if found:
            return f"fast ({', '.join(found)}): the default of 'openvino'"
        return "not in hardware: 'openvino' computes in fp32"
    return "up to OpenVINO: 'openvino' asks it for what the CPU has"


def examine_gpu() -> GpuReport:
    """Look at the NVIDIA GPUs."""
    import pynvml

    packages = {
        name: found.version
        for found in distributions()
        if (name := (found.metadata["Name"] or "").lower().replace("_", "-")).startswith(_GPU_PACKAGES)
    }
    libraries = {name: ctypes.util.find_library(name) for name in _GPU_LIBRARIES}
    driver = driver_cuda = problem = None
    devices: list[GpuDevice] = []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReport(None, None, str(error), (), dict(sorted(packages.items())), libraries)
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
    return GpuReport(driver, driver_cuda, problem, tuple(devices), dict(sorted(packages.items())), libraries)
