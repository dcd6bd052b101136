"""Measure speed on an NVIDIA GPU, and print a table for the README.

    pip install ".[cuda,tensorrt-rtx]" && python benchmarks/gpu.py [MODEL.onnx] [--hour]

Every backend and precision that can run denoises a 5 s clip and, with `--hour`, a file of one hour; `ort-cuda` also
does so with CUDA graphs and with channels-last kernels. The table includes the published times of the same network on
an RTX 4090D with TensorRT (5 s in 89 ms in fp32, in 42 ms in INT8). The output of each is compared with that of ONNX
Runtime on the CPU; the exit code is 1 if one differs too much.

Without MODEL.onnx the network has the released size and seeded random weights, which are as fast as trained ones.
INT8 is less accurate with random weights, so its limit is lower then. With a model, INT8 is calibrated on the audio
in the package and must pass the quality gate.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from plan import tensorrt_int8

from frcrn_accel import Backend, BackendError, BackendUnavailable, Denoiser, ModelFile
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.backends.ort_cuda import OrtCudaBackend
from frcrn_accel.backends.tensorrt import TensorRtBackend, TensorRtRtxBackend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.export import write_random_model
from frcrn_accel.models import TENSORRT_INT8, find_model
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ, Config
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quantize import CALIBRATION_AUDIO, quantize_model

CLIP_S = 5
EXAMPLE = Path(__file__).parents[1] / "examples" / "noisy.wav"
BACKENDS: tuple[type[Backend], ...] = (OrtCudaBackend, TensorRtBackend, TensorRtRtxBackend)
OPTIONS: dict[type[Backend], list[tuple[str, ...]]] = {  # that are off by default, to be compared with none
    OrtCudaBackend: [("cuda_graphs",), ("prefer_nhwc",), ("cuda_graphs", "prefer_nhwc")],
}
PUBLISHED = {("TensorRT", "fp32"): 89.0, ("TensorRT", "int8"): 42.0}  # ms for 5 s, RTX 4090D
LEAST_DB = {"fp32": 80.0, "fp16": 40.0, "int8": 30.0}  # SI-SDR to the CPU's output
LEAST_RANDOM_INT8_DB = 10.0


@dataclass(frozen=True)
class Row:
    """The measurements of one backend, precision and set of options.

    Attributes:
        options: Options of the backend that are on, e.g. `"cuda_graphs"`.
        clip_ms: Median time of the clip.
        agreement_db: SI-SDR to the output of the CPU.
        hour_s: Time of the hour; None if it was not measured.
    """

    backend: str
    precision: str
    options: tuple[str, ...]
    device: str
    clip_ms: float
    agreement_db: float
    hour_s: float | None


def fp32_model(path: Path | None, folder: Path) -> ModelFile:
    """Return the given model, or one of the released size."""
    if path is not None:
        return find_model(path)
    return write_random_model(folder / "fp32.onnx", Config())


def int8_model(path: Path | None, fp32: ModelFile, folder: Path) -> ModelFile:
    """Return the same model in INT8."""
    int8 = folder / "int8.onnx"
    if path is not None:
        quantize_model(path, int8, TENSORRT_INT8, calibration=CALIBRATION_AUDIO)
        return ModelFile.open(int8)
    return tensorrt_int8(fp32, [clip()], int8)


def clip() -> NDArray[np.float32]:
    """Return speech in noise, `(1, samples)`, at the level of the model."""
    audio = soundfile.read(EXAMPLE, dtype="float32")[0][: CLIP_S * SAMPLE_RATE_HZ // HOP_SAMPLES * HOP_SAMPLES]
    level: NDArray[np.float32] = (audio * 0.056 / np.std(audio)).astype(np.float32)[None]
    return level


def measure(
    kind: type[Backend],
    precision: str,
    options: tuple[str, ...],
    model: ModelFile,
    expected: NDArray[np.float32],
    rounds: int,
    hour: Path | None,
) -> Row:
    audio = clip()
    # The plan here is tuned for the clip, the one below for the windows of a file.
    switched_on: dict[str, Any] = dict.fromkeys(options, True)
    backend = kind(precision, **({"window_s": CLIP_S} if issubclass(kind, TensorRtBackend) else switched_on))
    session = backend.load(model, threads=2)
    try:
        found = session.run(audio)  # the first call allocates memory, and compiles
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            session.run(audio)
            times.append(time.perf_counter() - began)
        device = session.device
    finally:
        session.close()
    hour_s = None
    if hour is not None:
        with Denoiser(model.path, backend=kind(precision, **switched_on)) as denoiser:
            denoiser(audio[0], SAMPLE_RATE_HZ)
            hour_s = denoiser.denoise_file(hour, hour.with_suffix(".out.wav"), overwrite=True).processing_s
    agreement_db = si_sdr_db(expected[0], found[0])
    return Row(backend.name, precision, options, device, 1e3 * statistics.median(times), agreement_db, hour_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="an fp32 file made by 'frcrn-accel export'")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--hour", action="store_true", help="also denoise a file of one hour")
    options = parser.parse_args()
    rows: list[Row] = []
    too_far = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hour = None
        if options.hour:
            audio = soundfile.read(EXAMPLE, dtype="float32")[0]
            hour = folder / "hour.wav"
            soundfile.write(hour, np.resize(audio, 3600 * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
        files = {"fp32": fp32_model(options.model, folder)}
        expected = OrtBackend().load(files["fp32"], available_cpus()).run(clip())
        configurations: list[tuple[type[Backend], str, tuple[str, ...]]] = []
        for backend in BACKENDS:
            try:
                backend.check()
            except BackendUnavailable as error:
                print(f"left out: {error}")
                continue
            configurations += [
                (backend, precision, switches)
                for precision in ("fp32", "fp16", "int8")
                if precision in backend.precisions
                for switches in [(), *OPTIONS.get(backend, [])]
            ]
        if any(precision == "int8" for _, precision, _ in configurations):
            files["int8"] = int8_model(options.model, files["fp32"], folder)
        for kind, precision, switches in configurations:
            title = " ".join([kind.name, precision, *switches])
            print(f"{title} ...", file=sys.stderr)
            try:
                model = files["int8" if precision == "int8" else "fp32"]
                row = measure(kind, precision, switches, model, expected, options.rounds, hour)
            except BackendError as error:
                print(f"left out: {title}: {error}")
                continue
            least_db = LEAST_DB[row.precision]
            if row.precision == "int8" and options.model is None:
                least_db = LEAST_RANDOM_INT8_DB
            if not row.agreement_db >= least_db:
                too_far.append(
                    f"{title}: SI-SDR to the CPU is {row.agreement_db:.1f} dB, at least {least_db:g} needed"
                )
            rows.append(row)
    if not rows:
        sys.exit("no backend for a GPU can run here")
    print(f"\n{rows[0].device.split(',')[0]}; {files['fp32'].metadata.name}\n")
    print("| | 5 s clip, ms | published, ms | one hour, s | SI-SDR to the output of the CPU, dB |")
    print("|---|---|---|---|---|")
    for row in rows:
        published = PUBLISHED.get(("TensorRT" if row.backend.startswith("tensorrt") else row.backend, row.precision))
        cells = [
            " ".join([f"`{row.backend}` {row.precision}", *(f"`{option}`" for option in row.options)]),
            f"{row.clip_ms:.1f}",
            "" if published is None else f"{published:.0f}",
            "" if row.hour_s is None else f"{row.hour_s:.1f}",
            f"{row.agreement_db:.1f}",
        ]
        print(f"| {' | '.join(cells)} |")
    if too_far:
        sys.exit("outputs that differ too much from the CPU:\n" + "\n".join(too_far))


if __name__ == "__main__":
    main()
