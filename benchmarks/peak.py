"""Compare the arithmetic speed of each configuration with the peak of the machine in 8 bits.

    python benchmarks/peak.py REPORT.json [--rounds 15]

REPORT.json is a report of `frcrn-accel bench` on this machine. The peak is the speed of one large matrix product on
ONNX Runtime, in fp32 and in 8-bit integers, measured here. The speed of a configuration is the arithmetic of the
network as it is defined (benchmarks/arithmetic.py), even if it computes less, over its median time. Needs
`[quantize]`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from arithmetic import multiply_accumulates
from onnx import TensorProto, helper, numpy_helper

from frcrn_accel.backends.ort import cpu_session
from frcrn_accel.network.topology import HOP_SAMPLES, SAMPLE_RATE_HZ, Config

MATRIX = 2048  # rows and columns of the product
PRODUCTS_PER_RUN = 4


def product(dtype: str, threads: int) -> Callable[[], None]:
    """Return a function that computes a large matrix product several times."""
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
    session = cpu_session(model.SerializeToString(), threads)

    def run() -> None:
        for _ in range(PRODUCTS_PER_RUN):
            session.run(None, {"a": a})

    return run


def peaks_gops(threads: int, rounds: int) -> dict[str, float]:
    """Measure the operations in a second, 1e9, of each type; they take turns."""
    runs = {dtype: product(dtype, threads) for dtype in ("fp32", "int8")}
    times_s: dict[str, list[float]] = {dtype: [] for dtype in runs}
    for number in range(rounds + 1):
        for dtype, run in runs.items():
            began = time.perf_counter()
            run()
            if number:  # the first allocates memory
                times_s[dtype].append(time.perf_counter() - began)
    operations = 2e-9 * PRODUCTS_PER_RUN * MATRIX**3
    return {dtype: operations / statistics.median(found) for dtype, found in times_s.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    report = json.loads(options.report.read_text(encoding="utf-8"))
    for group in report["groups"]:
        peaks = peaks_gops(group["threads"], options.rounds)
        samples = int(group["length_s"] * SAMPLE_RATE_HZ) // HOP_SAMPLES * HOP_SAMPLES
        counts = multiply_accumulates(Config(group["channels"], group["unets"]), samples)
        operations = 2e-9 * sum(counts.values())
        print(
            f"{group['model']}: {operations:.1f} GOP (2 for each multiply-accumulate); a product of {MATRIX} x "
            f"{MATRIX} matrices runs at {peaks['fp32']:.0f} GOP/s in fp32, {peaks['int8']:.0f} GOP/s in 8 bits"
        )
        print("| configuration | GOP/s | of the 8-bit peak |")
        print("|---|---|---|")
        for row in sorted(group["rows"], key=lambda row: float(row["median_s"])):
            gops = operations / row["median_s"]
            print(f"| `{row['configuration']}` | {gops:.0f} | {100 * gops / peaks['int8']:.0f} % |")


if __name__ == "__main__":
    main()
