"""The INT8 files for TensorRT, run by ONNX Runtime: the file determines the integers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from frcrn_accel import ModelFile
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import find_model, read_weights
from frcrn_accel.network.topology import Config
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quantize import METHODS, QuantizeReport
from frcrn_accel.testing import random_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from frcrn_accel.graph.fold import fold_constants  # noqa: E402
from frcrn_accel.quantize.explicit import Histogram, measure_inputs  # noqa: E402
from frcrn_accel.quantize.tensorrt_int8 import InputProbe, find_ranges  # noqa: E402

METHOD = METHODS["tensorrt-int8"]
CONFIG = Config(16, 1)


@pytest.fixture(scope="module")
def quantized(quantized_once) -> QuantizeReport:
    """The packaged model, quantized with the packaged audio."""
    # By name, not by `max_rescued`: that depends on the metrics that are installed here.
    return quantized_once("tensorrt-int8", "unet.fsmn_enc.1", "unet.fsmn_dec.5")


def noise(samples: int = 32_000) -> np.ndarray:
    return (0.056 * np.random.default_rng(0).standard_normal((1, samples))).astype(np.float32)


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def metadata():
    return dataclasses.replace(
        find_model("frcrn-small").metadata,
        channels=CONFIG.channels,
        unets=CONFIG.unets,
        method="tensorrt-int8",
        source_sha256="0" * 64,
    )


def run(graph: onnx.ModelProto, path, audio: np.ndarray) -> np.ndarray:
    path.write_bytes(graph.SerializeToString())
    return OrtBackend().load(ModelFile.open(path), threads=1).run(audio)[0]


def test_it_passes_the_gate(quantized):
    source = find_model("frcrn-small")
    assert quantized.verdict == "passed"
    assert quantized.gate.measures[0].value > 33
    assert quantized.gate.candidate_device.startswith("ort: CPUExecutionProvider")
    assert quantized.size_ratio < 0.55
    assert find_model(quantized.output).metadata == dataclasses.replace(
        source.metadata,
        library_version=find_model(quantized.output).metadata.library_version,
        method="tensorrt-int8",
        source_sha256=sha256_of(source.path),
        calibration_sha256=quantized.calibration_sha256,
        gate="passed",
        kept_float=quantized.kept_float,
    )


def test_both_inputs_of_every_convolution_are_symmetric_integers(quantized):
    model = fold_constants(onnx.load(quantized.output))
    made = {output: node for node in model.graph.node for output in node.output}
    stored = initializers(model)
    transposed = [node.name for node in model.graph.node if node.op_type == "ConvTranspose"]
    # The inverse transform with its overlap, and in the last layer the one that adds up 20 channels.
    unets = Config(unets=find_model("frcrn-small").metadata.unets).unet_names
    last_layers = [f"{unet}/decoders.6/ConvTranspose" for unet in unets]
    assert transposed == [*last_layers, "istft/ConvTranspose", "istft/ConvTranspose_1"]
    count = 0
    for node in model.graph.node:
        if node.op_type != "Conv" or node.input[0] not in made or made[node.input[0]].op_type != "DequantizeLinear":
            continue
        count += 1
        signal, weight = (made[name] for name in node.input[:2])
        assert made[signal.input[0]].op_type == "QuantizeLinear"
        integers, scale, zero = (stored[name] for name in weight.input)
        assert integers.dtype == np.int8
        assert np.abs(integers).max() == 127
        assert (scale.dtype, scale.shape, zero) == (np.float16, (), 0)
        assert stored[signal.input[2]] == 0
        assert node.name.split("/")[1].split(".")[0] in {"encoders", "decoders", "fsmn_enc", "fsmn_dec", "fsmn"}
    assert all("fsmn" in group for group in quantized.kept_float)
    assert count == len(unets) * (6 + 2 * 6 + 2 * 14) - 2 * len(quantized.kept_float)


def test_weights_are_stored_once_as_integers(quantized):
    released = read_weights(find_model("frcrn-small").path)
    stored = initializers(onnx.load(quantized.output))
    assert set(released) <= set(stored)
    large = [name for name, tensor in stored.items() if tensor.size > 10_000]
    assert large
    assert all(stored[name].dtype == np.int8 for name in large)


def test_folding_changes_nothing(quantized, tmp_path):
    model = onnx.load(quantized.output)
    folded = fold_constants(model)
    assert len(folded.graph.node) < len(model.graph.node) / 2
    np.testing.assert_array_equal(run(folded, tmp_path / "a.onnx", noise()), run(model, tmp_path / "b.onnx", noise()))


def test_layers_kept_in_float(tmp_path):
    weights = random_weights(CONFIG)
    build = METHOD.prepare(weights, [noise()])
    groups = METHOD.groups(CONFIG)
    assert groups == (
        *(name for i in range(1, 7) for name in (f"unet.fsmn_enc.{i}", f"unet.encoders.{i}")),
        "unet.fsmn",
        *(name for i in range(6) for name in (f"unet.decoders.{i}", f"unet.fsmn_dec.{i}")),
    )
    audio = noise()
    counts, outputs = [], []
    for kept in ((), ("unet.encoders.2",), ("unet.fsmn",), ("unet.decoders.3", "unet.fsmn_dec.5"), groups):
        graph = build(weights, metadata(), frozenset(kept))
        counts.append(sum(node.op_type == "Conv" and "Dequant" in node.input[1] for node in graph.graph.node))
        stored = initializers(graph)
        for group in kept:
            for name in (name for name in stored if name.startswith(f"{group}.") and name in weights):
                np.testing.assert_array_equal(stored[name], weights[name])
        outputs.append(run(graph, tmp_path / f"{len(counts)}.onnx", audio))
    assert counts == [46, 45, 42, 42, 0]
    assert si_sdr_db(outputs[-1], outputs[0]) > 20


def test_channels_without_weights_and_large_ones(tmp_path):
    weights = {key: value.copy() for key, value in random_weights(CONFIG).items()}
    for part in ("re", "im"):
        weights[f"unet.encoders.2.conv.conv_{part}.weight"][3] = 0
        weights[f"unet.fsmn_enc.3.fsmn_{part}_L1.linear.weight"][2] = 0
        weights[f"unet.fsmn_enc.3.fsmn_{part}_L1.linear.bias"][2] = 0
    weights["unet.decoders.1.bn.bn_re.weight"][2] = 0
    weights["unet.decoders.1.bn.bn_re.weight"][3] *= -1
    weights["unet.encoders.1.bn.bn_im.weight"][5] *= 100
    build = METHOD.prepare(weights, [noise()])
    outputs = [
        run(build(weights, metadata(), frozenset(kept)), tmp_path / f"{len(kept)}.onnx", noise())
        for kept in ((), METHOD.groups(CONFIG))
    ]
    assert np.isfinite(outputs[0]).all()
    assert si_sdr_db(outputs[1], outputs[0]) > 15


class TestRanges:
    def test_factors_are_magnitudes_and_limits_follow(self):
        weights = random_weights(CONFIG)
        seen = measure_inputs(InputProbe(weights), [noise()], threads=1)
        ranges = find_ranges(CONFIG.channels, seen)
        assert set(ranges.limits) == set(ranges.factors) == set(seen)
        assert len(seen) == 6 + 6 + 2 * 14
        assert ranges.factors["unet.encoders.1"].shape == (16,)
        assert ranges.factors["unet.decoders.1"].shape == (32,)  # two inputs side by side
        assert ranges.factors["unet.fsmn.L2.project"].shape == (32,)  # two nets
        for factors in ranges.factors.values():
            assert np.median(factors) == pytest.approx(1, rel=0.02)

    def test_a_histogram_knows_quantiles_to_a_percent(self):
        rng = np.random.default_rng(0)
        values = rng.standard_normal((2, 3, 50, 40)).astype(np.float32) * np.array([1, 10, 0.01])[:, None, None]
        values = values.astype(np.float32)
        histogram = Histogram(3)
        histogram.add(values[:1])
        histogram.add(values[1:])
        for q in (0.5, 0.99, 1.0):
            assert histogram.quantile(q) == pytest.approx(np.quantile(np.abs(values), q), rel=0.03)
            by_channel = np.quantile(np.abs(values).swapaxes(0, 1).reshape(3, -1), q, axis=1)
            np.testing.assert_allclose(histogram.channel_quantiles(q), by_channel, rtol=0.05)
        scales = np.array([2, 5, 0.1], np.float32)
        scaled = np.abs(values / scales[:, None, None])
        assert histogram.quantile(0.99, scales) == pytest.approx(np.quantile(scaled, 0.99), rel=0.03)
