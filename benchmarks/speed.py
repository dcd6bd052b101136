"""Speed, memory and size of every way to run the network, upstream's own code among them, all in one run.

    python benchmarks/speed.py [--channels 128] [--unets 2] [--threads 2] [--rounds 9] [--variants ort ...]

Every variant lives in a process of its own (so that one engine's idle threads do not slow the next) and the variants
take turns, A B C A B C ...; what counts is the median over the rounds of the ratio to another variant in the same
round. `textbook-int8` is so slow that it has fewer rounds (`--slow-rounds`), whose medians are of those rounds alone.

Also measured in turn: how fast one large product of matrices is on this machine, in fp32 and of 8-bit integers, both
on ONNX Runtime. What a variant achieves is the arithmetic of the network as it is defined (benchmarks/arithmetic.py),
whatever it does to have less of it, over its time.

Linux only; needs the groups `test` and `upstream`, and the extras `[export]`, `[quantize]` and `[openvino]`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from arithmetic import multiply_accumulates
from process import peak_memory_kib

from frcrn_accel.model.topology import HOP_SAMPLES, SAMPLE_RATE_HZ, Config

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

Run = Callable[[np.ndarray], Any]
Load = Callable[[Path, argparse.Namespace], Run]

UPSTREAM_FILE, FUSED_FILE, TEXTBOOK_FILE = "upstream.onnx", "fused.onnx", "textbook.onnx"
# Files made by the quantizer, and how.
METHOD_FILES = {"dynamic.onnx": "dynamic", "static.onnx": "static", "openvino.onnx": "openvino-int8"}
MATRIX = 2048  # rows and columns of the product that the machine's peak is measured with
PRODUCTS_PER_RUN = 4


@dataclass(frozen=True)
class Variant:
    """One way to run the network.

    Attributes:
        title: Its row in the table.
        load: Gives what runs it.
        file: What it runs, in the folder of model files; "" for none.
        is_slow: Whether it gets fewer rounds.
    """

    title: str
    load: Load
    file: str = ""
    is_slow: bool = False


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


def plain_ort(file: str) -> Load:
    """ONNX Runtime with its default settings."""

    def load(folder: Path, options: argparse.Namespace) -> Run:
        session = ort_session(str(folder / file), options.threads)
        return lambda audio: session.run(None, {session.get_inputs()[0].name: audio})

    return load


def ours(file: str, backend: str, precision: str | None = None) -> Variant:
    """A backend of this package."""

    def load(folder: Path, options: argparse.Namespace) -> Run:
        from frcrn_accel.backends import resolve_backend
        from frcrn_accel.models import ModelFile

        return resolve_backend(backend, precision).load(ModelFile.open(folder / file), options.threads).run

    return Variant(f"frcrn-accel `{backend}` {precision or ''}".rstrip(), load, file)


def product(dtype: str) -> Load:
    """A large product of matrices, again and again."""

    def load(folder: Path, options: argparse.Namespace) -> Run:
        from onnx import TensorProto, helper, numpy_helper

        rng = np.random.default_rng(0)
        if dtype == "fp32":
            kind, inputs, output = "MatMul", TensorProto.FLOAT, TensorProto.FLOAT
            a, b = rng.standard_normal((2, MATRIX, MATRIX)).astype(np.float32)
        else:
            kind, inputs, output = "MatMulInteger", TensorProto.UINT8, TensorProto.INT32
            a = rng.integers(0, 256, (MATRIX, MATRIX)).astype(np.uint8)
            b = rng.integers(-127, 128, (MATRIX, MATRIX)).astype(np.int8)
        graph = helper.make_graph(
            [helper.make_node(kind, ["a", "b"], ["y"])],
            "product",
            [helper.make_tensor_value_info("a", inputs, [MATRIX, MATRIX])],
            [helper.make_tensor_value_info("y", output, [MATRIX, MATRIX])],
            [numpy_helper.from_array(b, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session = ort_session(model.SerializeToString(), options.threads)

        def run(audio: np.ndarray) -> None:
            for _ in range(PRODUCTS_PER_RUN):
                session.run(None, {"a": a})

        return run

    return load


def ort_session(model: str | bytes, threads: int) -> Any:
    import onnxruntime

    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = threads
    session_options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, session_options, providers=["CPUExecutionProvider"])


VARIANTS = {
    "upstream-ort": Variant("upstream exported as it is, ONNX Runtime", plain_ort(UPSTREAM_FILE), UPSTREAM_FILE),
    "upstream-torch": Variant("upstream's module, PyTorch", upstream_torch),
    "textbook-int8": Variant("`quantize_dynamic`, ONNX Runtime", plain_ort(TEXTBOOK_FILE), TEXTBOOK_FILE, True),
    "torch": ours(FUSED_FILE, "torch"),
    "ort": ours(FUSED_FILE, "ort"),
    "ort-dynamic-int8": ours("dynamic.onnx", "ort-dynamic-int8"),
    "ort-static-int8": ours("static.onnx", "ort-static-int8"),
    "openvino-fp32": ours(FUSED_FILE, "openvino", "fp32"),
    "openvino-bf16": ours(FUSED_FILE, "openvino", "bf16"),
    "openvino-int8": ours("openvino.onnx", "openvino", "int8"),
}
# What others are compared with, where it takes part; and the heads of those columns.
BASELINES = {
    "upstream-ort": "upstream's export",
    "upstream-torch": "upstream's PyTorch",
    "textbook-int8": "`quantize_dynamic`",
    "ort": "`ort`",
    "openvino-fp32": "`openvino` fp32",
}
PEAKS = {"peak-fp32": product("fp32"), "peak-int8": product("int8")}


def prepare(folder: Path, options: argparse.Namespace, files: Sequence[str]) -> None:
    """Write the model files. In a process of its own, to keep torch out of the workers that do not need it."""
    import torch

    from frcrn_accel.export import export_model

    network = upstream_network(options.channels, options.unets)
    torch.save(network.state_dict(), folder / "model.pt")
    export_model(folder / "model.pt", folder / FUSED_FILE)
    if UPSTREAM_FILE in files:
        network.forward = network.inference_batch
        axes = {"audio": {0: "batch", 1: "samples"}, "out": {0: "batch", 1: "samples"}}
        torch.onnx.export(
            network,
            (torch.zeros(1, SAMPLE_RATE_HZ),),
            str(folder / UPSTREAM_FILE),
            input_names=["audio"],
            output_names=["out"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    if TEXTBOOK_FILE in files:
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        # It takes stored weights only: what is made of weights has to be worked out first.
        quant_pre_process(folder / FUSED_FILE, folder / "folded.onnx", skip_symbolic_shape=True)
        quantize_dynamic(folder / "folded.onnx", folder / TEXTBOOK_FILE)
    quantize(folder, files)


def quantize(folder: Path, files: Sequence[str]) -> None:
    """The package's own quantized files: random weights have no sound that a gate could judge."""
    from frcrn_accel.quantize import CALIBRATION_AUDIO, METHODS, quantize_model

    calibration = folder / "calibration"
    calibration.mkdir()
    for path in sorted(CALIBRATION_AUDIO.iterdir())[:2]:  # few are enough for timings
        shutil.copy(path, calibration)
    for file, method in METHOD_FILES.items():
        if file in files:
            print(f"quantizing: {method}", file=sys.stderr)
            audio = calibration if METHODS[method].needs_calibration else None
            quantize_model(folder / FUSED_FILE, folder / file, method, gate=None, calibration=audio)


def worker(connection: Connection, name: str, folder: Path, options: argparse.Namespace) -> None:
    from frcrn_accel import BackendUnavailable

    audio = np.random.default_rng(0).standard_normal((1, window_samples(options)), np.float32) * np.float32(0.056)
    load = VARIANTS[name].load if name in VARIANTS else PEAKS[name]
    try:
        run = load(folder, options)
    except BackendUnavailable as error:
        connection.send(str(error))
        return
    run(audio)
    connection.send("")
    while connection.recv() == "run":
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        run(audio)
        connection.send((time.perf_counter() - wall_s, time.process_time() - cpu_s))
    connection.send(peak_memory_kib() / 1024)


def window_samples(options: argparse.Namespace) -> int:
    return int(options.seconds * SAMPLE_RATE_HZ) // HOP_SAMPLES * HOP_SAMPLES


def machine() -> str:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {multiprocessing.cpu_count()} CPUs, {platform.system()}, Python {platform.python_version()}"


@dataclass(frozen=True)
class Timings:
    """Of each round that a variant took part in: number of the round, seconds, seconds of all CPUs."""

    rounds: list[int]
    wall_s: list[float]
    cpu_s: list[float]

    def speedup(self, baseline: Timings) -> dict[str, float]:
        """Over a baseline, in the rounds that both took part in: median, least and most."""
        own = dict(zip(self.rounds, self.wall_s, strict=True))
        other = dict(zip(baseline.rounds, baseline.wall_s, strict=True))
        ratios = sorted(other[number] / own[number] for number in own.keys() & other.keys())
        return {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}


def measure(folder: Path, options: argparse.Namespace) -> tuple[dict[str, Timings], dict[str, float]]:
    """Times and peak memory, MB, of each variant that can run and of the peaks."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name in (*options.variants, *PEAKS):
        near, far = context.Pipe()
        process = context.Process(target=worker, args=(far, name, folder, options), daemon=True)
        process.start()
        far.close()  # so that a worker that dies is an end of file here
        try:
            problem = near.recv()
        except EOFError:
            sys.exit(f"{name} failed")
        if problem:
            print(f"left out: {name}: {problem}")
        else:
            workers[name] = near
    timings = {name: Timings([], [], []) for name in workers}
    for number in range(options.rounds):
        for name, connection in workers.items():
            if number >= options.slow_rounds and name in VARIANTS and VARIANTS[name].is_slow:
                continue
            connection.send("run")
            wall_s, cpu_s = connection.recv()
            timings[name].rounds.append(number)
            timings[name].wall_s.append(wall_s)
            timings[name].cpu_s.append(cpu_s)
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    memory = {}
    for name, connection in workers.items():
        connection.send("stop")
        memory[name] = connection.recv()
    return timings, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--unets", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slow-rounds", type=int, default=2, help="rounds of textbook-int8")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.variants = [name for name in VARIANTS if name in options.variants]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sorted({VARIANTS[variant].file for variant in options.variants})
        context = multiprocessing.get_context("spawn")
        preparation = context.Process(target=prepare, args=(folder, options, files))
        preparation.start()
        preparation.join()
        if preparation.exitcode != 0:
            sys.exit("the model files could not be made")
        megabytes = {path.name: path.stat().st_size / 1e6 for path in folder.glob("*.onnx")}
        timings, memory = measure(folder, options)

    # 2 operations each.
    peaks = {
        name.partition("-")[2]: 2e-9 * PRODUCTS_PER_RUN * MATRIX**3 / statistics.median(timings[name].wall_s)
        for name in PEAKS
    }
    counts = multiply_accumulates(Config(options.channels, options.unets), window_samples(options))
    gigaoperations = 2e-9 * sum(counts.values())
    baselines = [name for name in BASELINES if name in timings]
    rows = []
    for name in (variant for variant in options.variants if variant in timings):
        median_s = statistics.median(timings[name].wall_s)
        rows.append(
            {
                "variant": name,
                "median_s": median_s,
                "real_time_factor": median_s / options.seconds,
                "cpu_s": statistics.median(timings[name].cpu_s),
                "rounds": len(timings[name].rounds),
                "peak_memory_mb": memory[name],
                "file_mb": megabytes.get(VARIANTS[name].file),
                "gops": gigaoperations / median_s,
                "share_of_int8_peak": gigaoperations / median_s / peaks["int8"],
                "speedup_over": {baseline: timings[name].speedup(timings[baseline]) for baseline in baselines},
            }
        )

    size = f"{options.channels} channels, {options.unets} U-Net(s)"
    print(f"{size}, {options.seconds:g} s clip, {options.threads} thread(s), {options.rounds} rounds")
    print(machine())
    print(
        f"{gigaoperations:.1f} GOP (2 for each multiply-accumulate); a product of {MATRIX} x {MATRIX} matrices runs "
        f"at {peaks['fp32']:.0f} GOP/s in fp32, {peaks['int8']:.0f} GOP/s in 8 bits"
    )
    heads = ["variant", "median s", "RTF", "CPU s", "peak MB", "file MB", "GOP/s", "of the 8-bit peak"]
    heads += [f"over {BASELINES[baseline]} (range)" for baseline in baselines]
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for row in rows:
        cells = [
            VARIANTS[row["variant"]].title,
            f"{row['median_s']:.3f}",
            f"{row['real_time_factor']:.3f}",
            f"{row['cpu_s']:.3f}",
            f"{row['peak_memory_mb']:.0f}",
            "" if row["file_mb"] is None else f"{row['file_mb']:.1f}",
            f"{row['gops']:.0f}",
            f"{100 * row['share_of_int8_peak']:.0f} %",
        ]
        for ratio in row["speedup_over"].values():
            cells.append(f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})")
        print(f"| {' | '.join(cells)} |")
    if options.json:
        result = {
            "options": {**vars(options), "json": None},
            "machine": machine(),
            "multiply_accumulates": counts,
            "peak_gops": peaks,
            "rows": rows,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
