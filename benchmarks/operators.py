"""Profile a model by operator and by kind of layer.

    python benchmarks/operators.py MODEL... [--backend openvino:int8] [--seconds 5] [--runs 5]

MODEL is the name of a known model or a file; `--random CHANNELS UNETS` builds one of that size with random weights
instead, and `--method dynamic` quantizes it. The engine's session is profiled with the settings that the backend
gives it. Times are medians over the runs; the time of an operator is that from its start to its end, whatever the
number of threads that work on it.

Engines rearrange a network as they load it. A merged operator counts for the layer whose name it bears; operators
without the name of a layer (mostly changes of layout) are of the kind "added by the engine".

Needs the extra of the backend, and `[quantize]` for `--random` and `--method`.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frcrn_accel.backends import Backend, resolve_backend
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.export import write_random_model
from frcrn_accel.models import FP32, ModelFile, find_model
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ, STAGES, Config

# Kinds of layer, by the scope in the name of a node; the first match counts.
ADDED = "added by the engine"
KINDS = {
    "transforms": r"^(stft|istft)/",
    "first and last layers": rf"/(encoders\.0|decoders\.{STAGES - 1}|linear)/",
    "convolutions": r"/(encoders|decoders)\.",
    "FSMN": r"/fsmn",
    "squeeze-excitation": r"/se_layers",
    "mask": r"^(mask/|unet\d*/Tanh)",
}
Operator = tuple[str, str]  # name of the node, operator
Profile = dict[Operator, float]  # seconds


def kind_of(name: str) -> str:
    """Return the kind of layer that a node belongs to."""
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), ADDED)


def profile_ort(load: Callable[[], Any], audio: np.ndarray, runs: int) -> list[Profile]:
    """Return a profile for each run of the session that a backend creates with ONNX Runtime."""
    import onnxruntime

    sessions: list[Any] = []
    plain = onnxruntime.InferenceSession

    class ProfiledSession(plain):  # type: ignore[misc, valid-type]
        def __init__(self, model: Any, options: Any, **more: Any) -> None:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            super().__init__(model, options, **more)
            sessions.append(self)

    with tempfile.TemporaryDirectory() as folder:
        onnxruntime.InferenceSession = ProfiledSession
        try:
            session = load()
        finally:
            onnxruntime.InferenceSession = plain
        for _ in range(runs + 1):  # the first allocates memory too
            session.run(audio)
        files = [Path(profiled.end_profiling()) for profiled in sessions]
        events = json.loads(files[-1].read_text(encoding="utf-8"))
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    profiles: list[Profile] = [defaultdict(float) for _ in starts]
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
            name = event["name"].removesuffix("_kernel_time")
            profiles[run][name, event["args"]["op_name"]] += event["dur"] / 1e6
    return profiles[-runs:]


def profile_openvino(load: Callable[[], Any], audio: np.ndarray, runs: int) -> list[Profile]:
    """Return a profile for each run of the model that a backend compiles with OpenVINO."""
    import openvino

    compiled: list[Any] = []
    plain = openvino.Core

    class ProfiledCore(plain):  # type: ignore[misc, valid-type]
        def compile_model(self, model: Any, device: str, options: dict[str, Any]) -> Any:
            compiled.append(super().compile_model(model, device, {**options, "PERF_COUNT": True}))
            return compiled[-1]

    openvino.Core = ProfiledCore
    try:
        session = load()
    finally:
        openvino.Core = plain
    # The layers that a node was made of; OpenVINO may have invented the name of the node itself.
    origins = {
        node.get_friendly_name(): str(node.get_rt_info()["originalLayersNames"].value).split(",")
        for node in compiled[-1].get_runtime_model().get_ordered_ops()
    }
    request = compiled[-1].create_infer_request()
    profiles = []
    for run in range(runs + 1):
        request.infer([audio], share_inputs=True)
        profile: Profile = defaultdict(float)
        for node in request.get_profiling_info():
            names = [node.node_name, *origins.get(node.node_name, [])]
            name = next((name for name in names if kind_of(name) != ADDED), node.node_name)
            profile[name, node.node_type] += node.real_time.total_seconds()
        if run:
            profiles.append(profile)
    del request
    session.close()
    return profiles


def table(profiles: list[Profile], group: Callable[[Operator], str]) -> list[tuple[str, float, int]]:
    """Return the median seconds and the number of operators of each group, the slowest first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * len(profiles))
    for number, profile in enumerate(profiles):
        for operator, seconds in profile.items():
            sums[group(operator)][number] += seconds
    counts = Counter(group(operator) for operator, seconds in profiles[-1].items() if seconds > 0)
    rows = [(name, statistics.median(seconds), counts[name]) for name, seconds in sums.items()]
    return sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])


def print_table(head: str, rows: list[tuple[str, float, int]], least_share: float) -> None:
    total = sum(seconds for _, seconds, _ in rows)
    few = [row for row in rows if row[1] >= least_share * total]
    rest = [row for row in rows if row[1] < least_share * total]
    if rest:
        few.append(("the rest", sum(row[1] for row in rest), sum(row[2] for row in rest)))
    print(f"| {head} | ms | share | operators |")
    print("|---|---|---|---|")
    for name, seconds, count in few:
        print(f"| {name} | {1000 * seconds:.1f} | {100 * seconds / total:.1f} % | {count} |")
    print()


def quantized(folder: Path, model: str | Path, method: str) -> Path:
    """Quantize a model, calibrated where necessary on the audio in the package."""
    from frcrn_accel.quantize import CALIBRATION_AUDIO, METHODS, quantize_model

    out = folder / f"{method}.onnx"
    audio = CALIBRATION_AUDIO if METHODS[method].needs_calibration else None
    quantize_model(model, out, method, gate=None, calibration=audio)
    return out


def backend_of(method: str) -> Backend:
    """Return the backend that runs files of a method."""
    if method == FP32:
        return OrtBackend()
    from frcrn_accel.quantize import METHODS

    return METHODS[method].backend()


def profile_model(model: ModelFile, options: argparse.Namespace) -> dict[str, Any]:
    if options.backend:
        name, _, precision = options.backend.partition(":")
        backend = resolve_backend(name, precision or None)
    else:
        backend = resolve_backend(backend_of(model.metadata.method))
    hops = int(options.seconds * SAMPLE_RATE_HZ) // HOP_SAMPLES
    audio = (0.056 * np.random.default_rng(0).standard_normal((1, hops * HOP_SAMPLES))).astype(np.float32)
    session = backend.load(model, options.threads)
    walls = []
    for _ in range(options.runs + 1):
        began = time.perf_counter()
        session.run(audio)
        walls.append(time.perf_counter() - began)
    session.close()
    profile = profile_openvino if backend.name == "openvino" else profile_ort
    profiles = profile(lambda: backend.load(model, options.threads), audio, options.runs)
    operators = table(profiles, lambda operator: operator[1])
    kinds = table(profiles, lambda operator: kind_of(operator[0]))
    layers = table(profiles, lambda operator: operator[0].rpartition("/")[0] or ADDED)
    wall_s = statistics.median(walls[1:])
    described = f"{model.metadata.name} ({model.metadata.method}) on {backend.name}, {backend.precision}"
    print(f"{described}, {options.seconds:g} s clip, {options.threads} thread(s), {options.runs} runs")
    print(
        f"{1000 * wall_s:.1f} ms without the profiler, "
        f"{1000 * sum(seconds for _, seconds, _ in operators):.1f} ms in operators with it\n"
    )
    print_table("operator", operators, options.least_share)
    print_table("kind of layer", kinds, 0)
    if options.layers:
        print_table("layer", layers, options.least_share)
    return {"model": described, "wall_s": wall_s, "operators": operators, "kinds": kinds, "layers": layers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--random", type=int, nargs=2, metavar=("CHANNELS", "UNETS"))
    parser.add_argument("--method", help="quantize the model first, see `frcrn-accel quantize`")
    parser.add_argument(
        "--backend", help="BACKEND[:PRECISION]; by default the one on ONNX Runtime that the file is made for"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--least-share", type=float, default=0.01, help="operators with a smaller share are summed up in one row"
    )
    parser.add_argument("--layers", action="store_true", help="print a third table, by layer")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if bool(options.models) == bool(options.random):
        parser.error("give either a model or --random")
    results = []
    with tempfile.TemporaryDirectory() as name:
        models = options.models
        if options.random:
            path = Path(name) / "-".join(map(str, ["random", *options.random]))
            models = [write_random_model(path.with_suffix(".onnx"), Config(*options.random)).path]
        for model in models:
            path = quantized(Path(name), model, options.method) if options.method else model
            results.append(profile_model(find_model(path), options))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
