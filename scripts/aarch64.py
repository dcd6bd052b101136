"""Run the packaged models in an emulated 64-bit Arm Python, and compare with this machine: `nox -s aarch64`.

qemu, an Arm Python and its libraries come from Debian's packages, and Python packages from their wheels. All are
unpacked into one folder; nothing is installed, and dpkg's architectures stay as they are.

With `--compute`, this file is what runs in both places: it writes what the models make of the same audio.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SITE = "http://deb.debian.org/debian bookworm main"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PYTHON = "3.11"  # of bookworm
ARM_PACKAGES = (f"python{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libstdc++6")
# onnxruntime 1.32 crashes at import under qemu 7.2, before any code of this project.
ONNXRUNTIME = "onnxruntime==1.26.*"
WHEELS = "aarch64-manylinux_2_28"
# Of the Raspberry Pi 4, which has no 8-bit dot products, and of the Raspberry Pi 5, which has.
CPUS = ("cortex-a72", "cortex-a76")
MODEL, STREAM_MODEL = "frcrn-small", "frcrn-small-stream"
RATE_HZ = 16_000
MOST_STEPS = 1.0  # of fp32, in steps of 16-bit audio
# Of INT8: a range that is rounded the other way changes the rounding of a whole window.
LEAST_AGREEMENT_DB = 30.0


def main() -> int:
    """Set up the emulated Python, run the models in both places, and print a table of the differences."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compute", type=Path, metavar="FILE", help="only run the models here, and write FILE")
    parser.add_argument("--folder", type=Path, default=Path(".nox", "aarch64-files"), help="where all is unpacked")
    parser.add_argument("--wheel", help="the wheel of frcrn-accel")
    parser.add_argument("--audio", type=Path, default=Path("examples", "noisy.wav"), help="mono, 16 kHz")
    parser.add_argument("--seconds", type=float, default=2.0, help="how much of the audio")
    parser.add_argument("--cpu", choices=CPUS, action="append", help="which CPUs to emulate; by default both")
    arguments = parser.parse_args()
    if arguments.compute:
        compute(arguments.audio, arguments.seconds, arguments.compute)
        return 0
    if not arguments.wheel:
        parser.error("give the --wheel")
    folder = arguments.folder.resolve()
    set_up(folder, arguments.wheel)
    options = ["--audio", str(arguments.audio), "--seconds", str(arguments.seconds)]
    here = run([sys.executable], folder / "here.npz", options, {})
    print_place(here)
    passed = True
    for cpu in arguments.cpu or CPUS:
        emulator = [str(folder / "qemu/usr/bin/qemu-aarch64-static"), "-cpu", cpu, "-L", str(folder / "root")]
        python = [*emulator, str(folder / f"root/usr/bin/python{PYTHON}"), "-B"]
        there = run(python, folder / f"{cpu}.npz", options, {"PYTHONPATH": str(folder / "site")})
        print(f"\n{cpu}")
        print_place(there)
        passed &= compare(here, there)
    return 0 if passed else 1


def set_up(folder: Path, wheel: str) -> None:
    """Unpack qemu, the Arm Python and the packages that the wheel needs; keep what an earlier run unpacked."""
    if not (folder / "root").exists():
        for architecture, wanted in (("amd64", ("qemu-user-static",)), ("arm64", ARM_PACKAGES)):
            unpacked = folder / f"unpacked-{architecture}"
            for path in download(folder / architecture, architecture, wanted):
                subprocess.run(["dpkg-deb", "--extract", str(path), str(unpacked)], check=True)
        (folder / "unpacked-amd64").rename(folder / "qemu")
        (folder / "unpacked-arm64").rename(folder / "root")
    packages = (f"{wheel}[ort]", ONNXRUNTIME)
    platform_of = (f"--python-version={PYTHON}", f"--python-platform={WHEELS}", "--only-binary=:all:")
    target = ("--target", str(folder / "site"), "--reinstall-package=frcrn-accel")
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", *platform_of, *target, *packages]
    subprocess.run(command, check=True)


def download(folder: Path, architecture: str, packages: Iterable[str]) -> list[Path]:
    """Download Debian packages of an architecture with all that they depend on; apt keeps its state in `folder`."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state/status").touch()  # nothing is installed, so dependencies are downloaded, too
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {SITE}\n", encoding="utf-8")
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state/status",
    }
    apt = ["apt-get", "--quiet=2", "--yes", *(f"--option={name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "install", "--download-only", *packages], check=True)
    return sorted((folder / "cache/archives").glob("*.deb"))


def run(python: list[str], result: Path, options: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run `compute` in a Python, with a cache of its own, and return what it wrote."""
    with tempfile.TemporaryDirectory() as cache:
        everything = {**os.environ, "FRCRN_ACCEL_CACHE_DIR": cache, **environment}
        subprocess.run([*python, __file__, "--compute", str(result), *options], check=True, env=everything)
    with np.load(result) as found:
        return dict(found)


def compute(audio: Path, seconds: float, result: Path) -> None:
    """Write what the models make of the start of a recording, and in which Python."""
    import av
    import onnxruntime
    import soundfile
    import soxr

    from frcrn_accel import Denoiser
    from frcrn_accel.doctor.machine import examine_cpu

    noisy, rate_hz = soundfile.read(audio, frames=round(seconds * RATE_HZ), dtype="float32")
    if rate_hz != RATE_HZ or noisy.ndim != 1:
        raise SystemExit(f"{audio} is not mono at {RATE_HZ} Hz")
    packages = {module.__name__: module.__version__ for module in (onnxruntime, np, av, soundfile, soxr)}
    cpu = dataclasses.asdict(examine_cpu())
    place = {"python": platform.python_version(), "machine": platform.machine(), "packages": packages, "cpu": cpu}
    found: dict[str, Any] = {"place": np.array(json.dumps(place))}
    for backend in ("ort", "ort-dynamic-int8", "ort-static-int8"):
        with Denoiser(MODEL, backend=backend, threads=1) as denoiser:
            found[f"{MODEL}, {backend}"] = denoiser(noisy, sample_rate=RATE_HZ)
            if backend == "ort":
                found[f"{MODEL}, {backend}, a stereo file at 44.1 kHz"] = through_files(denoiser, noisy)
    with Denoiser(STREAM_MODEL, backend="ort", threads=1) as denoiser:
        stream = denoiser.stream(RATE_HZ)
        parts = [stream.process(noisy[start : start + 320]) for start in range(0, len(noisy), 320)]
        found[f"{STREAM_MODEL}, ort, a stream in steps of 20 ms"] = np.concatenate([*parts, stream.flush()])
    np.savez(result, **found)


def through_files(denoiser: Any, noisy: Any) -> Any:
    """Denoise a stereo file at 44.1 kHz into FLAC, and that by way of M4A; return the content of the FLAC file."""
    import soundfile
    import soxr

    with tempfile.TemporaryDirectory() as name:
        source, clean, small = (Path(name, f"{stem}") for stem in ("noisy.wav", "clean.flac", "clean.m4a"))
        played = soxr.resample(noisy[:RATE_HZ], RATE_HZ, 44_100)
        soundfile.write(source, np.stack([played, -0.5 * played], axis=1), 44_100)
        denoiser.denoise_file(source, clean)
        denoiser.denoise_file(clean, small)
        denoiser.denoise_file(small, Path(name, "again.wav"))
        if soundfile.info(Path(name, "again.wav")).frames != len(played):
            raise SystemExit("the M4A file has another length")
        return soundfile.read(clean, dtype="float32")[0]


def print_place(found: dict[str, Any]) -> None:
    """Print in which Python something was computed."""
    place = json.loads(str(found["place"]))
    packages = ", ".join(f"{name} {version}" for name, version in place["packages"].items())
    features = ", ".join(name for name, has in place["cpu"]["features"].items() if has)
    print(f"Python {place['python']}, {place['machine']} ({features}); {packages}", flush=True)


def compare(here: dict[str, Any], there: dict[str, Any]) -> bool:
    """Print how what was computed there differs; return whether every difference is small enough."""
    from frcrn_accel.quality.metrics import agreement_db

    passed = True
    print("| what | largest difference, steps of 16 bits | agreement, dB |\n|---|---|---|")
    for name, expected in here.items():
        if name == "place":
            continue
        steps = 32_768 * float(np.abs(there[name] - expected).max())
        agreement = agreement_db(expected.ravel(), there[name].ravel())
        is_close = agreement >= LEAST_AGREEMENT_DB if "int8" in name else steps <= MOST_STEPS
        print(f"| {name} | {steps:.3f} | {agreement:.1f} |{'' if is_close else ' too different'}", flush=True)
        passed &= is_close and bool(np.isfinite(there[name]).all())
    return passed


if __name__ == "__main__":
    sys.exit(main())
