"""The integer form of the network, compared with 64-bit integer arithmetic in numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable
from frcrn_accel.backends.ort import OrtDynamicInt8Backend
from frcrn_accel.models import DEFAULT_MODEL, find_model, packaged_variant, read_weights
from frcrn_accel.network.topology import (
    BN_EPSILON,
    DECODER_KERNELS,
    ENCODER_KERNELS,
    FRAME_SAMPLES,
    FSMN_ORDER,
    HOP_SAMPLES,
    LEAKY_SLOPE,
    Config,
    layer_groups,
)
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.testing import random_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from frcrn_accel.graph.forms import build_graph  # noqa: E402
from frcrn_accel.quantize.channels_last import Activation  # noqa: E402
from frcrn_accel.quantize.integer import IntegerNetwork, group_names  # noqa: E402
from frcrn_accel.quantize.measure import measure_ranges  # noqa: E402
from frcrn_accel.quantize.ranges import FsmnRanges, Ranges  # noqa: E402
from frcrn_accel.quantize.synthetic import synthetic_clips  # noqa: E402

CHANNELS = 8
CONFIG = Config(CHANNELS, 1)
FRAMES = 7
ENCODER, DECODER, FSMN = "unet.encoders.2", "unet.decoders.3", "unet.fsmn_enc.2"
# Float rounding, as a share of the peak. One level of one 8-bit input is a hundred times as much.
ROUNDING = 2e-6


def problem() -> str:
    """Return why this CPU cannot be exact; "" where it can."""
    try:
        OrtDynamicInt8Backend.check()
    except BackendUnavailable as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(problem()), reason=problem())

Block = Callable[[IntegerNetwork, list[Activation]], Activation]


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG)


@pytest.fixture(scope="module")
def ranges(weights):
    """Ranges for dynamic INT8 and, for convolutions, static INT8, measured on two clips."""
    return measure_ranges(weights, islice(synthetic_clips(), 2))


@pytest.fixture(scope="module")
def dynamic_ranges(ranges):
    return Ranges(ranges.fsmn)


def session_of(content: bytes):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_block(weights, ranges: Ranges, block: Block, sources: Sequence[np.ndarray], height: int) -> np.ndarray:
    """Run one part of the network alone.

    Args:
        block: Adds the part to the graph.
        sources: Its inputs, `(2, frames, rows, channels)` each.
        height: Rows of the inputs that count.

    Returns:
        `(2, frames, rows, channels)`.
    """
    network = IntegerNetwork(weights, ranges, frozenset())
    g = network.graph
    frames = sources[0].shape[1]
    network.frames = g.ints(frames)
    activations, start = [], 0
    for source in sources:
        parts = []
        for part in source:
            y = g.op("Slice", "audio", g.ints(start), g.ints(start + part.size), g.ints(1))
            parts.append(g.op("Reshape", y, g.ints(1, *part.shape)))
            start += part.size
        highs = [g.op("ReduceMax", part, axes=[0, 2, 3], keepdims=0) for part in parts]
        scale = g.op("Max", *highs, g.constant(1e-30))
        activations.append(Activation((parts[0], parts[1]), height, source.shape[2], 0, scale))
    result = block(network, activations)
    shape = g.ints(2, -1, result.rows, CHANNELS)
    g.op("Reshape", g.op("Reshape", g.op("Concat", *result.parts, axis=0), shape), g.ints(1, -1))
    model = g.build("audio", "denoised", "block", "0", {}, batch=1)
    audio = np.concatenate([source.ravel() for source in sources])[None]
    (y,) = session_of(model.SerializeToString()).run(None, {"audio": audio})
    return y.reshape(2, -1, result.rows, CHANNELS)


def activation(rows: int, seed: int, frames: int = FRAMES) -> np.ndarray:
    """Return a plausible output of LeakyReLU, with frames that span 60 dB."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, frames, rows, CHANNELS))
    x *= 10 ** rng.uniform(-3, 0, (1, frames, 1, 1))
    return leaky(x).astype(np.float32)


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, LEAKY_SLOPE * x)


def encoder(network: IntegerNetwork, sources: list[Activation]) -> Activation:
    return network.encoder(ENCODER, sources[0])


def decoder(network: IntegerNetwork, sources: list[Activation]) -> Activation:
    return network.decoder(DECODER, sources)


def fsmn(network: IntegerNetwork, sources: list[Activation]) -> Activation:
    return network.fsmn(FSMN, 1, sources[0], along_time=False)


class Convolution:
    """A complex convolution with the batch norm and the activation after it, in numpy.

    Args:
        name: Name of the convolution in the checkpoint.
        output_axis: Axis of the output channels in its weights.
    """

    def __init__(self, weights, name: str, output_axis: int) -> None:
        stacked = np.stack([weights[f"{name}_{part}.weight"] for part in ("re", "im")])
        axes = tuple(axis for axis in range(5) if axis != output_axis + 1)
        scale = np.abs(stacked).max(axis=axes, keepdims=True) / np.float32(127)
        self.re, self.im = np.rint(stacked / scale).astype(np.int64)
        self.scale = scale.ravel()
        bn = name.rsplit(".", 2)[0] + ".bn.bn_"
        biases = [weights[f"{name}_{part}.bias"] for part in ("re", "im")]
        self.gains, self.shifts = [], []
        for which, bias in enumerate((biases[0] - biases[1], biases[0] + biases[1])):
            gamma, beta, mean, variance = (
                weights[f"{bn}{('re', 'im')[which]}.{tensor}"]
                for tensor in ("weight", "bias", "running_mean", "running_var")
            )
            self.gains.append(gamma / np.sqrt(variance + np.float32(BN_EPSILON)))
            self.shifts.append((bias - mean) * self.gains[-1] + beta)

    def finished(self, sums: Sequence[np.ndarray], scales: np.ndarray) -> np.ndarray:
        """Return the activation for sums of integer products, `(frames, rows, channels)` of each part."""
        return np.stack(
            [
                leaky(total * scales[:, None, None].astype(float) * (self.scale * gain) + shift)
                for total, gain, shift in zip(sums, self.gains, self.shifts, strict=True)
            ]
        )


def integers(x: np.ndarray, scale: np.float32) -> np.ndarray:
    """Quantize to 8 bits with zero in the middle."""
    return np.clip(np.rint(x / scale), -128, 127).astype(np.int64)


def frame_peaks(sources: Sequence[np.ndarray], known: Sequence[float]) -> np.ndarray:
    """Return the peaks: from the data or, with known ranges, relative to the largest value of each source."""
    if known:
        peaks = [source.max(axis=(0, 2, 3)) * np.float32(k) for source, k in zip(sources, known, strict=True)]
    else:
        peaks = [np.abs(source).max(axis=(0, 2, 3)) for source in sources]
    return np.max(peaks, axis=0)


def expected_encoder(weights, x: np.ndarray, known: Sequence[float] = ()) -> np.ndarray:
    c = Convolution(weights, f"{ENCODER}.conv.conv", 0)
    taps = c.re.shape[2]
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    peaks = np.pad(frame_peaks([x], known), 1)
    scales = np.maximum(peaks[:-1], peaks[1:]) * np.float32(1 / 127)
    height = (x.shape[2] - taps) // 2 + 1
    sums = np.zeros((2, len(scales), height, CHANNELS), np.int64)
    for t, scale in enumerate(scales):
        for time in (0, 1):
            re, im = integers(padded[:, t + time], scale)
            for tap in range(taps):
                rows = slice(tap, tap + 2 * height - 1, 2)
                w_re, w_im = c.re[:, :, tap, time].T, c.im[:, :, tap, time].T
                sums[0, t] += re[rows] @ w_re - im[rows] @ w_im
                sums[1, t] += re[rows] @ w_im + im[rows] @ w_re
    return c.finished(sums, scales)


def expected_decoder(weights, sources: Sequence[np.ndarray], height: int, known: Sequence[float] = ()) -> np.ndarray:
    c = Convolution(weights, f"{DECODER}.transconv.tconv", 1)
    taps = c.re.shape[2]
    peaks = frame_peaks(sources, known)
    scales = np.maximum(peaks[:-1], peaks[1:]) * np.float32(1 / 127)
    joined = np.concatenate([source[:, :, :height] for source in sources], axis=3)
    sums = np.zeros((2, len(scales), 2 * (height - 1) + taps, CHANNELS), np.int64)
    for t, scale in enumerate(scales):
        for time in (0, 1):
            re, im = integers(joined[:, t + 1 - time], scale)  # transposed: the later frame meets the first tap
            for tap in range(taps):
                rows = slice(tap, tap + 2 * height - 1, 2)
                w_re, w_im = c.re[:, :, tap, time], c.im[:, :, tap, time]
                sums[0, t, rows] += re @ w_re - im @ w_im
                sums[1, t, rows] += re @ w_im + im @ w_re
    return c.finished(sums, scales)


class TestConvolutions:
    @pytest.mark.parametrize("known", [(), (0.8,)])
    def test_an_encoder_is_exact(self, weights, known):
        x = activation(19, seed=1)
        found = run_block(weights, Ranges({}, {ENCODER: known}), encoder, [x], 19)
        expected = expected_encoder(weights, x, known)
        assert found.shape == expected.shape == (2, FRAMES + 1, (19 - ENCODER_KERNELS[2][0]) // 2 + 1, CHANNELS)
        np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())

    @pytest.mark.parametrize("known", [(), (0.8, 1.3)])
    @pytest.mark.parametrize("more_rows", [0, 1])
    def test_a_decoder_is_exact(self, weights, known, more_rows):
        height = 9
        sources = [activation(height + more_rows, seed=2), activation(height, seed=3)]
        found = run_block(weights, Ranges({}, {DECODER: known}), decoder, sources, height)
        expected = expected_decoder(weights, sources, height, known)
        rows = 2 * (height - 1) + DECODER_KERNELS[3][0]
        assert expected.shape == (2, FRAMES - 1, rows, CHANNELS)
        assert found.shape[:2] == expected.shape[:2]
        np.testing.assert_allclose(found[:, :, :rows], expected, rtol=0, atol=ROUNDING * np.abs(expected).max())

    def test_a_loud_frame_matters_only_to_products_it_takes_part_in(self, weights):
        loud = 3
        x, height = activation(19, seed=4), 19
        louder = x.copy()
        louder[:, loud] *= 1000
        for block, sources, touched in ((encoder, 1, (loud, loud + 1)), (decoder, 2, (loud - 1, loud))):
            before, after = (run_block(weights, Ranges({}), block, [y] * sources, height) for y in (x, louder))
            same = [t for t in range(before.shape[1]) if t not in touched]
            np.testing.assert_array_equal(after[:, same], before[:, same])
            assert not np.array_equal(after[:, touched], before[:, touched])


class NumpyFsmn:
    """An FSMN block in 8 bits: integer sums, each requantized to 8 bits with rounding to even and saturation."""

    def __init__(self, weights, name: str, ranges: FsmnRanges, floor: float) -> None:
        self.weights, self.name, self.ranges, self.floor = weights, name, ranges, floor

    def matrices(self, net: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return integer weights and their scales, of the first layer, the projection and the filter."""
        key = f"{self.name}.fsmn_{('re', 'im')[net]}_L1"
        linear, bias, projection, filters = (
            self.weights[f"{key}.{tensor}"]
            for tensor in ("linear.weight", "linear.bias", "project.weight", "conv1.weight")
        )
        hidden, memory = self.ranges.hidden[net] / 255, self.ranges.memory / 127
        bias_columns = np.tile((bias / (4 * self.floor))[:, None], (1, 4))
        values = (
            np.concatenate([linear, bias_columns], axis=1) / hidden[:, None],
            projection * hidden / memory[:, None],
            filters.reshape(CHANNELS, FSMN_ORDER) / self.ranges.filtered,
        )
        scales = [np.abs(value).max(axis=1, keepdims=True) / 127 for value in values]
        return [(np.rint(v / s).astype(np.int64), s[:, 0]) for v, s in zip(values, scales, strict=True)]

    def levels(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Return the sum of memories and filtered memories of both parts, as 8-bit levels."""
        level = (scale * np.float32(1 / 248)).astype(np.float32)
        share = (np.float32(self.floor * 248) / scale)[:, None, None]
        held = np.floor(share + np.arange(4, dtype=np.float32) / 4)
        inputs = []
        for part in x:
            values = np.clip(np.rint(part / level[:, None, None]), -7, 248)
            inputs.append(np.concatenate([values, np.broadcast_to(held, (*values.shape[:2], 4))], 2).astype(np.int64))
        totals = []
        for to in (0, 1):
            memories, filtered = 0, 0
            for source in (0, 1):
                (w1, s1), (w2, s2), (w3, s3) = self.matrices(int(to != source))
                hidden = np.clip(np.rint(inputs[source] @ w1.T * (s1 / 248)), 0, 255).astype(np.int64)
                sign = -1 if (to, source) == (0, 1) else 1
                memory = np.clip(np.rint(sign * (hidden @ w2.T) * s2), -128, 127).astype(np.int64)
                before = np.pad(memory, ((0, 0), (FSMN_ORDER - 1, 0), (0, 0)))
                sums = sum(w3[:, tap] * before[:, tap : tap + memory.shape[1]] for tap in range(FSMN_ORDER))
                memories = memories + memory
                filtered = filtered + np.clip(np.rint(sums * s3), -128, 127).astype(np.int64)
            r = self.ranges
            unit_m, unit_f, unit_t = r.memories, r.filtered_sum, r.total
            memory_sum = np.clip(np.rint(memories / unit_m), -128, 127)
            filtered_sum = np.clip(np.rint(filtered * r.filtered / unit_f), -128, 127)
            totals.append(np.clip(np.rint((memory_sum * unit_m + filtered_sum * unit_f) / unit_t), -128, 127))
        return np.stack(totals)


class TestFsmn:
    def test_it_is_exact(self, weights, dynamic_ranges):
        x, rows = activation(39, seed=5), 39
        block = dynamic_ranges.fsmn[FSMN]
        floor = IntegerNetwork(weights, dynamic_ranges, frozenset()).fsmn_floor(FSMN)
        x[:, 2] *= 0.1 * floor / np.abs(x[:, 2]).max()  # one frame in which the bias dominates
        scale = np.maximum(x.max(axis=(0, 2, 3)), np.float32(floor))
        found = run_block(weights, dynamic_ranges, fsmn, [x], rows)
        # The memories alone, without the residuals, as levels.
        difference = found - np.stack([x[0] - x[1], x[0] + x[1]])
        level = scale[:, None, None].astype(float) * block.total * block.memory / 127
        levels = difference / level
        assert np.abs(levels - np.rint(levels)).max() < 0.05  # float rounding of the sums with the input
        expected = NumpyFsmn(weights, FSMN, block, floor).levels(x, scale)
        assert np.abs(expected).max() > 60
        off = np.rint(levels) - expected
        # ONNX Runtime scales in float32: a value between two levels may round the other way.
        assert np.abs(off).max() <= 1
        assert np.mean(off != 0) < 0.01
        assert abs(np.mean(off)) < 1e-3

    def test_frames_are_independent(self, weights, dynamic_ranges):
        x = activation(39, seed=6)
        louder = x.copy()
        louder[:, 3] *= 1000
        before, after = (run_block(weights, dynamic_ranges, fsmn, [y], 39) for y in (x, louder))
        others = [t for t in range(FRAMES) if t != 3]
        np.testing.assert_array_equal(after[:, others], before[:, others])
        assert np.abs(after[:, 3]).max() > 100 * np.abs(before[:, 3]).max()

    def test_it_scales_with_its_input_where_the_bias_is_small(self, weights, dynamic_ranges):
        x = 1000 * activation(39, seed=7)
        once, twice = (run_block(weights, dynamic_ranges, fsmn, [y], 39) for y in (x, 1024 * x))
        np.testing.assert_allclose(twice / 1024, once, rtol=0, atol=0.02 * np.abs(once).max())

    def test_it_is_near_to_float(self, weights, dynamic_ranges):
        """Checks the levels that the tests above take as given."""
        x = activation(39, seed=8)

        def float_fsmn(network: IntegerNetwork, sources: list[Activation]) -> Activation:
            network.keep_float = frozenset([FSMN])
            return network.fsmn(FSMN, 1, sources[0], along_time=False)

        expected = run_block(weights, dynamic_ranges, float_fsmn, [x], 39)
        found = run_block(weights, dynamic_ranges, fsmn, [x], 39)
        peaks = np.abs(expected).max(axis=(0, 2, 3), keepdims=True)
        assert np.sqrt(np.mean(((found - expected) / peaks) ** 2)) < 0.01


def noise(frames: int, seed: int = 0) -> np.ndarray:
    samples = FRAME_SAMPLES + (frames - 1) * HOP_SAMPLES
    return (0.056 * np.random.default_rng(seed).standard_normal((1, samples))).astype(np.float32)


@pytest.fixture(scope="module")
def fp32(weights):
    return session_of(build_graph(weights, "fp32", "0", {}).SerializeToString())


@pytest.fixture(scope="module", params=["dynamic", "static"])
def int8(request, weights, ranges, dynamic_ranges):
    known = dynamic_ranges if request.param == "dynamic" else ranges
    return session_of(IntegerNetwork(weights, known, frozenset()).build("int8", "0", {}).SerializeToString())


class TestNetwork:
    @pytest.mark.parametrize("frames", [1, 2, 27])
    def test_all_in_float_it_is_the_fp32_network(self, weights, fp32, frames):
        everything = frozenset(group_names(CONFIG)) | frozenset(layer_groups(CONFIG))
        model = IntegerNetwork(weights, Ranges({}), everything).build("float", "0", {})
        integer_operators = {"MatMulIntegerToFloat", "QLinearConv", "QLinearAdd", "QuantizeLinear"}
        assert not integer_operators & {node.op_type for node in model.graph.node}
        audio = noise(frames)
        (expected,) = fp32.run(None, {"audio": audio})
        (found,) = session_of(model.SerializeToString()).run(None, {"audio": audio})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    @pytest.mark.parametrize("frames", [1, 2, 3, 27, 49])
    def test_any_length(self, fp32, int8, frames):
        audio = noise(frames)
        (expected,) = fp32.run(None, {"audio": audio})
        (found,) = int8.run(None, {"audio": audio})
        assert found.shape == audio.shape
        assert si_sdr_db(expected[0], found[0]) > 25

    @pytest.mark.parametrize("frames", [1, 3, 27])
    def test_silence_stays_silence(self, int8, frames):
        silence = 0 * noise(frames)
        np.testing.assert_array_equal(int8.run(None, {"audio": silence})[0], silence)

    def test_keeping_a_layer_in_float_changes_the_result(self, weights, ranges, int8):
        audio = noise(27)
        kept = IntegerNetwork(weights, ranges, frozenset([DECODER])).build("int8", "0", {})
        (found,) = session_of(kept.SerializeToString()).run(None, {"audio": audio})
        assert not np.array_equal(found, int8.run(None, {"audio": audio})[0])


class TestReleasedSize:
    @pytest.mark.parametrize("is_static", [False, True])
    def test_weights_are_stored_once(self, is_static):
        config = Config(128, 2)
        c = config.channels
        # Numbers that depend on the weights but not how large the file is.
        block = FsmnRanges(np.ones((2, c), np.float32), np.ones(c, np.float32), 1.0, 1.0, 1.0, 1.0)
        groups = group_names(config)
        inputs = {name: (1.0, 1.0) if "decoders" in name else (1.0,) for name in groups if "fsmn" not in name}
        ranges = Ranges({name: block for name in groups if "fsmn" in name}, inputs if is_static else {})
        model = IntegerNetwork(random_weights(config), ranges, frozenset()).build("released", "0", {})
        assert len(model.SerializeToString()) <= 15e6
        large = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 10_000]
        assert len({tensor.raw_data for tensor in large}) == len(large)
        elements = sum(int(np.prod(tensor.dims)) for tensor in large if tensor.data_type == onnx.TensorProto.INT8)
        parameters = sum(value.size for value in random_weights(config).values() if value.size > 10_000)
        assert elements == pytest.approx(parameters, rel=0.02)  # four more columns hold the bias in the FSMN


class TestPackagedModel:
    @pytest.mark.parametrize("method", ["dynamic", "static"])
    def test_it_sounds_like_fp32(self, method):
        source = find_model(DEFAULT_MODEL)
        fp32, int8 = (session_of(model.path.read_bytes()) for model in (source, packaged_variant(source, method)))
        agreements_db = [
            si_sdr_db(fp32.run(None, {"audio": clip[None]})[0][0], int8.run(None, {"audio": clip[None]})[0][0])
            for clip in islice(synthetic_clips(seed=1), 0, 10, 3)
        ]
        assert min(agreements_db) >= 25

    def test_every_range_is_positive(self):
        found = measure_ranges(read_weights(find_model(DEFAULT_MODEL).path), islice(synthetic_clips(), 1))
        metadata = find_model(DEFAULT_MODEL).metadata
        config = Config(metadata.channels, metadata.unets)
        assert set(found.fsmn) == {name for name in group_names(config) if "fsmn" in name}
        assert all(np.all(block.hidden > 0) and np.all(block.memory > 0) for block in found.fsmn.values())
        assert all(value > 0 for values in found.inputs.values() for value in values)
