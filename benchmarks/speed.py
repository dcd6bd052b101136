"""Speed of the exported file against upstream's own code, all in one run.

    python benchmarks/speed.py [--channels 128] [--unets 2] [--threads 2] [--rounds 9] [--json OUT.json]

Every variant lives in a process of its own (so that one engine's idle threads do not slow the next) and the variants
take turns, A B C A B C ...; what counts is the median over the rounds of the ratio to the first variant in the same
round. Linux only; needs the groups `test` and `upstream`, and the extra `[export]`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from process import peak_memory_kib

from frcrn_accel.model.topology import SAMPLE_RATE_HZ

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Run = Callable[[np.ndarray], Any]


def upstream_network(channels: int, unets: int) -> Any:
    """Upstream's module, seeded random weights; with one U-Net it is cut down as the small model is."""
    import torch

    import upstream

    network = upstream.build(channels)
    if unets == 1:
        del network.unet2

        def inference_batch(audio: Any) -> Any:
            spectrum = network.stft(audio).unsqueeze(1)
            spectrum = torch.stack(spectrum.chunk(2, dim=2), dim=-1)
            return network.apply_mask(spectrum, torch.tanh(network.unet(spectrum)))[1]

        network.inference_batch = inference_batch
    return network


def upstream_torch(folder: Path, options: argparse.Namespace) -> Run:
    import torch

    torch.set_num_threads(options.threads)
    network = upstream_network(options.channels, options.unets)

    def run(audio: np.ndarray) -> None:
        with torch.inference_mode():
            network.inference_batch(torch.from_numpy(audio))

    return run


def upstream_ort(folder: Path, options: argparse.Namespace) -> Run:
    return ort_run(folder / "upstream.onnx", options.threads)


def fused_ort(folder: Path, options: argparse.Namespace) -> Run:
    from frcrn_accel.backends.ort import OrtBackend
    from frcrn_accel.models import ModelFile

    return OrtBackend().load(ModelFile.open(folder / "fused.onnx"), options.threads).run


def fused_torch(folder: Path, options: argparse.Namespace) -> Run:
    from frcrn_accel.backends.torch import TorchBackend
    from frcrn_accel.models import ModelFile

    return TorchBackend().load(ModelFile.open(folder / "fused.onnx"), options.threads).run


def ort_run(path: Path, threads: int) -> Run:
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    return lambda audio: session.run(None, {session.get_inputs()[0].name: audio})


VARIANTS: dict[str, Callable[[Path, argparse.Namespace], Run]] = {
    "upstream exported as it is, ONNX Runtime": upstream_ort,
    "upstream's module, PyTorch": upstream_torch,
    "frcrn-accel torch": fused_torch,
    "frcrn-accel ort": fused_ort,
}


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write both ONNX files. In a process of its own, to keep torch out of the workers that do not need it."""
    import torch

    from frcrn_accel.export import export_model

    network = upstream_network(options.channels, options.unets)
    torch.save(network.state_dict(), folder / "model.pt")
    export_model(folder / "model.pt", folder / "fused.onnx")
    network.forward = network.inference_batch
    example = torch.zeros(1, SAMPLE_RATE_HZ)
    axes = {"audio": {0: "batch", 1: "samples"}, "out": {0: "batch", 1: "samples"}}
    torch.onnx.export(
        network,
        (example,),
        str(folder / "upstream.onnx"),
        input_names=["audio"],
        output_names=["out"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


def worker(connection: Connection, name: str, folder: Path, options: argparse.Namespace) -> None:
    audio = 0.056 * np.random.default_rng(0).standard_normal((1, int(options.seconds * SAMPLE_RATE_HZ)))
    run = VARIANTS[name](folder, options)
    audio = audio.astype(np.float32)
    run(audio)
    connection.send("ready")
    while connection.recv() == "run":
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        run(audio)
        connection.send((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    connection.send(peak_memory_kib() / 1024)


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {multiprocessing.cpu_count()} CPUs, {platform.system()}, Python {platform.python_version()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--unets", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preparation = context.Process(target=prepare, args=(folder, options))
        preparation.start()
        preparation.join()
        if preparation.exitcode != 0:
            sys.exit("the model files could not be made")
        megabytes = {path.name: path.stat().st_size / 1e6 for path in folder.glob("*.onnx")}
        workers = {}
        for variant in VARIANTS:
            ours, theirs = context.Pipe()
            process = context.Process(target=worker, args=(theirs, variant, folder, options), daemon=True)
            process.start()
            assert ours.recv() == "ready"
            workers[variant] = ours
        wall: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        cpu: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(options.rounds):
            for variant, connection in workers.items():
                connection.send("run")
                wall_s, cpu_s = connection.recv()
                wall[variant].append(wall_s)
                cpu[variant].append(cpu_s)
        memory = {}
        for variant, connection in workers.items():
            connection.send("stop")
            memory[variant] = connection.recv()

    def ratios(variant: str, baseline: str) -> list[float]:
        return sorted(b / v for b, v in zip(wall[baseline], wall[variant], strict=True))

    size = f"{options.channels} channels, {options.unets} U-Net(s)"
    print(f"{size}, {options.seconds:g} s clip, {options.threads} thread(s)")
    print(machine())
    print(", ".join(f"{name} {size:.1f} MB" for name, size in sorted(megabytes.items())))
    first, second = list(VARIANTS)[:2]
    rows = []
    for variant in VARIANTS:
        row = {
            "variant": variant,
            "median_s": statistics.median(wall[variant]),
            "real_time_factor": statistics.median(wall[variant]) / options.seconds,
            "cpu_s": statistics.median(cpu[variant]),
            "peak_memory_mb": memory[variant],
            "speedup_over_upstream_ort": statistics.median(ratios(variant, first)),
            "speedup_over_upstream_torch": statistics.median(ratios(variant, second)),
            "speedup_range": [ratios(variant, first)[0], ratios(variant, first)[-1]],
        }
        rows.append(row)
    print("| variant | median s | RTF | CPU s | peak MB | over upstream ORT (range) | over upstream PyTorch |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = row["speedup_range"]
        print(
            f"| {row['variant']} | {row['median_s']:.3f} | {row['real_time_factor']:.3f} | {row['cpu_s']:.3f} "
            f"| {row['peak_memory_mb']:.0f} | {row['speedup_over_upstream_ort']:.2f} ({low:.2f}-{high:.2f}) "
            f"| {row['speedup_over_upstream_torch']:.2f} |"
        )
    if options.json:
        result = {"options": {**vars(options), "json": None}, "machine": machine(), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
