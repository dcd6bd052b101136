"""Analyse TensorRT plans from the builder's log, and estimate their time on some cards. Needs no card.

    python benchmarks/plan.py [--channels 128] [--unets 2] [--batches 1 2 4 8]

Prints for each precision: the convolutions of the plan by kind of layer and data type, the share of the arithmetic in
INT8, sizes, memory for activations by batch size, and a lower bound of the time from published peaks of some cards.
The bound of a layer is the longer of its arithmetic at the peak of its data type and its traffic at the memory
bandwidth; a real card is slower. Weights are random, and the INT8 network is calibrated on noise.

Needs the extras `[tensorrt-rtx]` and `[quantize]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frcrn_accel import ModelFile
from frcrn_accel.backends.tensorrt import TensorRtRtxBackend
from frcrn_accel.backends.tensorrt_plan import BuildLog, Plan, build_plan, plan_target
from frcrn_accel.digest import sha256_of
from frcrn_accel.export import write_random_model
from frcrn_accel.models import TENSORRT_INT8, read_weights
from frcrn_accel.network.topology import SAMPLE_RATE_HZ, Config
from frcrn_accel.prepare import prepare
from frcrn_accel.quantize import METHODS

PRECISIONS = ("fp32", "fp16", "int8")
BYTES = {"Float": 4, "Half": 2, "Int8": 1, "Bool": 1, "Int32": 4, "Int64": 8}
WINDOW_S = 20
CARD_SIZES_GB, SPARE_GB = (4, 8, 24), 1


@dataclass(frozen=True)
class Card:
    """Published peaks, without sparsity: TFLOPS or TOPS by data type, and GB/s.

    Half precision accumulates in float32, as TensorRT does in convolutions.
    """

    name: str
    compute_capability: str
    peaks: dict[str, float]
    bandwidth_gb: float


# From NVIDIA's Ada and GA102 white papers; the RTX 4090D is scaled from an RTX 4090 by the number of cores.
CARDS = (
    Card("RTX 4090D", "8.9", {"Float": 73.5, "Half": 147, "Int8": 588}, 1008),
    Card("RTX 3080", "8.6", {"Float": 29.8, "Half": 59.5, "Int8": 238}, 760),
)


@dataclass(frozen=True)
class Tensor:
    """A tensor of one window; its first size is -1 if it is the batch, which is not known when a plan is built."""

    name: str
    shape: tuple[int, ...]
    datatype: str

    @property
    def elements(self) -> int:
        """Number of elements in one window."""
        return abs(math.prod(self.shape))

    @property
    def bytes(self) -> int:
        return self.elements * BYTES[self.datatype]


@dataclass(frozen=True)
class Layer:
    """A line of the plan: one kernel.

    Attributes:
        name: Name that TensorRT gives it.
        kind: `correlation` and `deconv` are convolutions; a `runtime_fusion` may contain one.
        inputs, constants, outputs: Its tensors.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def is_transposed(self) -> bool:
        return self.kind == "deconv" or "Deco" in self.name

    @property
    def weight(self) -> Tensor | None:
        """Weight of a convolution, else None. A weight that another layer computes is an input."""
        if self.kind == "kgen" or not (self.kind in ("correlation", "deconv") or re.search("Corr|Deco", self.name)):
            return None
        for tensors in (self.constants, self.inputs[1:]):
            weights = [tensor for tensor in tensors if len(tensor.shape) == 4]
            if weights:
                return max(weights, key=lambda tensor: tensor.elements)
        return None

    @property
    def signal(self) -> Tensor:
        """The tensor that is convolved."""
        return self.inputs[0] if self.inputs else self.constants[0]

    @property
    def multiply_accumulates(self) -> int:
        """Multiply-accumulates of a convolution in the plan, with the channels that it is padded to; else 0."""
        weight = self.weight
        if weight is None:
            return 0
        # Each output value takes a product with each weight of a filter; transposed, each input value does.
        places = self.signal if self.is_transposed else self.outputs[0]
        return places.elements * math.prod(weight.shape[1:])

    @property
    def datatypes(self) -> str:
        """Data types of the two factors of a convolution."""
        weight = self.weight
        return "" if weight is None else f"{self.signal.datatype} x {weight.datatype}"

    @property
    def traffic_bytes(self) -> int:
        """Bytes of its tensors, each counted once: one that is read in several slices is listed several times."""
        return sum(tensor.bytes for tensor in {*self.inputs, *self.constants, *self.outputs})


def parse_layers(details: Sequence[str]) -> list[Layer]:
    """Parse the layers of the first profile from the log of a detailed build."""
    (listing,) = (message for message in details if message.startswith("Layers:"))
    layers = []
    for line in listing.splitlines():
        head = re.match(r"Name: (.*?_myl0_\d+), LayerType: (\w+), ", line)
        if head:
            inputs, constants, outputs = (_tensors(line, field) for field in ("Inputs", "Constants", "Outputs"))
            layers.append(Layer(head[1], head[2], inputs, constants, outputs))
    return layers


def _tensors(line: str, field: str) -> tuple[Tensor, ...]:
    found = re.search(rf"{field}: \[(.*?)\](?=, (?:Constants|Outputs|TacticName):)", line)
    pattern = r"Name: (\S+), Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)"
    listed = re.findall(pattern, found[1]) if found else []
    return tuple(
        Tensor(name, tuple(int(size) for size in sizes.split(",") if size), datatype)
        for name, sizes, datatype in listed
    )


def int8_share(layers: Sequence[Layer]) -> float:
    """Return the share of the multiply-accumulates whose factors are both INT8."""
    total = sum(layer.multiply_accumulates for layer in layers)
    return sum(layer.multiply_accumulates for layer in layers if layer.datatypes == "Int8 x Int8") / total


def least_time_s(layers: Sequence[Layer], card: Card) -> float:
    """Return a lower bound of the time of one window."""
    total_s = 0.0
    for layer in layers:
        peak = 1e12 * card.peaks[layer.weight.datatype if layer.weight else "Float"]
        total_s += max(2 * layer.multiply_accumulates / peak, layer.traffic_bytes / (1e9 * card.bandwidth_gb))
    return total_s


def random_models(config: Config, folder: Path) -> dict[str, ModelFile]:
    """Write model files with random weights; return them by precision."""
    noise = (0.056 * np.random.default_rng(0).standard_normal((1, SAMPLE_RATE_HZ))).astype(np.float32)
    fp32 = write_random_model(folder / "fp32.onnx", config)
    return {"fp32": fp32, "fp16": fp32, "int8": tensorrt_int8(fp32, [noise], folder / "int8.onnx")}


def tensorrt_int8(fp32: ModelFile, audio: Sequence[NDArray[np.float32]], path: Path) -> ModelFile:
    """Quantize a model for TensorRT without the quality gate, which random weights would not pass.

    Args:
        fp32: The model.
        audio: Audio to calibrate on, `(1, samples)` each, at the level of the model.
        path: File to write.
    """
    weights = read_weights(fp32.path)
    metadata = dataclasses.replace(fp32.metadata, method=TENSORRT_INT8, source_sha256=sha256_of(fp32.path))
    graph = METHODS[TENSORRT_INT8].prepare(weights, list(audio))(weights, metadata, frozenset())
    path.write_bytes(graph.SerializeToString())
    return ModelFile.open(path)


def detailed_plan(
    model: ModelFile, precision: str, *, max_batch: int = 1, compute_capabilities: Sequence[str] = ("8.9",)
) -> tuple[Plan, BuildLog]:
    model = prepare(model, TensorRtRtxBackend(precision))
    target = plan_target(
        model,
        TensorRtRtxBackend.package,
        precision,
        compute_capabilities,
        longest_window_samples=WINDOW_S * SAMPLE_RATE_HZ,
        max_batch=max_batch,
    )
    build_log = BuildLog()
    return build_plan(model, target, build_log=build_log, detailed=True), build_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--unets", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    TensorRtRtxBackend.check_packages()

    convolutions: dict[str, Counter[tuple[str, str]]] = {}
    work: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    memory: dict[str, list[int]] = {}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        models = random_models(Config(options.channels, options.unets), Path(name))
        for precision in PRECISIONS:
            plan, build_log = detailed_plan(models[precision], precision)
            layers = parse_layers(build_log.details)
            convolutions[precision] = Counter()
            for layer in layers:
                if layer.weight is not None:
                    kind = (layer.kind, layer.datatypes)
                    convolutions[precision][kind] += 1
                    work[precision][kind] += layer.multiply_accumulates
            total = sum(work[precision].values())
            times = [f"{1e3 * least_time_s(layers, card):.0f}" for card in CARDS]
            traffic_gb = sum(layer.traffic_bytes for layer in layers) / 1e9
            share = f"{100 * int8_share(layers):.1f} %"
            plan_mb = f"{len(plan.content) / 1e6:.1f}"
            rows.append(
                [precision, str(len(layers)), f"{total / 1e9:.0f}", share, f"{traffic_gb:.1f}", plan_mb, *times]
            )
            memory[precision] = [
                detailed_plan(models[precision], precision, max_batch=batch)[1].activation_bytes()
                for batch in options.batches
            ]

    print(f"{options.channels} channels, {options.unets} U-Net(s), a window of {WINDOW_S} s, compute capability 8.9")
    heads = ["precision", "layers", "GMAC", "in INT8", "traffic, GB", "plan, MB"]
    table(heads + [f"least time, ms: {card.name}" for card in CARDS], rows)
    print()
    table(
        ["precision", "kind of layer", "data types", "convolutions", "share of the arithmetic"],
        [
            [precision, *kind, str(count), f"{100 * work[precision][kind] / sum(work[precision].values()):.2f} %"]
            for precision in PRECISIONS
            for kind, count in convolutions[precision].most_common()
        ],
    )
    print()
    table(
        ["memory for activations, MB", *(f"batch {batch}" for batch in options.batches)],
        [[precision, *(f"{found / 1e6:.0f}" for found in memory[precision])] for precision in PRECISIONS],
    )
    print()
    sizes_mb = dict(zip(PRECISIONS, (float(row[5]) for row in rows), strict=True))

    def fitting(precision: str, card_gb: int) -> int:
        window_mb = memory[precision][-1] / 1e6 / options.batches[-1]
        return int((1e3 * (card_gb - SPARE_GB) - sizes_mb[precision]) / window_mb)

    table(
        [
            f"windows that fit, with {SPARE_GB} GB left for CUDA and other use",
            *(f"{size} GB" for size in CARD_SIZES_GB),
        ],
        [[precision, *(str(fitting(precision, size)) for size in CARD_SIZES_GB)] for precision in PRECISIONS],
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"| {' | '.join(heads)} |")
    print("|---" * len(heads) + "|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
