"""Graphs of a step of a stream: their output is that of the whole pass."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

from frcrn_accel.backends.ort import OrtBackend, cpu_session
from frcrn_accel.graph.forms import build_graph
from frcrn_accel.graph.timeline import Stepwise
from frcrn_accel.models import Form
from frcrn_accel.network.topology import AVERAGING_INPUT, HOP_SAMPLES, LOOKAHEAD_FRAMES, SE_LAYERS, Config
from frcrn_accel.quantize.integer import IntegerNetwork, group_names
from frcrn_accel.quantize.measure import measure_ranges
from frcrn_accel.quantize.ranges import Ranges
from frcrn_accel.testing import random_weights

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

FRAMES = 40


@pytest.fixture(scope="module", params=[1, 2], ids=["one-unet", "two-unets"])
def config(request: pytest.FixtureRequest) -> Config:
    return Config(8, request.param)


@pytest.fixture(scope="module")
def weights(config: Config) -> dict[str, np.ndarray]:
    return random_weights(config)


@pytest.fixture(scope="module")
def audio(config: Config) -> np.ndarray:
    """A hop of silence, noise, and silence for the look-ahead: two rows, the second louder."""
    rng = np.random.default_rng(0)
    noise = 0.05 * rng.standard_normal((2, FRAMES * HOP_SAMPLES)) * [[1], [4]]
    lag = LOOKAHEAD_FRAMES * config.unets
    return np.pad(noise, ((0, 0), (HOP_SAMPLES, (lag + 1) * HOP_SAMPLES))).astype(np.float32)


@pytest.fixture(scope="module")
def whole(weights: dict[str, np.ndarray], audio: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """PyTorch's output, and the means of squeeze-and-excitation by name of layer."""
    from frcrn_accel.network.module import SqueezeExcitation, build_network

    network = build_network(weights)
    means = {}
    for name, module in network.named_modules():
        if isinstance(module, SqueezeExcitation):
            module.register_forward_hook(lambda _, inputs, __, name=name: means.update({name: inputs[0].numpy()}))
    with torch.inference_mode():
        output = network(torch.from_numpy(audio)).numpy()
    return output, means


@pytest.fixture(scope="module")
def step_session(weights: dict[str, np.ndarray]) -> Callable[..., Any]:
    """Return the session of a step in a form, and with a look-ahead if it is less than the model's."""

    @cache
    def open_(form: Form, lookahead: int = LOOKAHEAD_FRAMES) -> Any:
        graph = build_graph(weights, "step", "0", {}, form, timeline=partial(Stepwise, lookahead=lookahead))
        return cpu_session(graph.SerializeToString(), 2)

    return open_


def run_in_steps(
    session: Any, audio: np.ndarray, config: Config, means: Mapping[str, np.ndarray], sizes: list[int]
) -> np.ndarray:
    """Run a step graph over all of the audio with constant means; return the output from frame `lag` on."""
    rows, lag = len(audio), LOOKAHEAD_FRAMES * config.unets
    states, left = {}, dict(means)
    for tensor in session.get_inputs():
        if tensor.name.startswith("state"):
            shape = [rows if isinstance(size, str) else size for size in tensor.shape]
            # The means of a layer, or of all layers whose names begin like that.
            of_state = [name for name in means if name.startswith(tensor.name.split("/")[1])]
            found = [left.pop(name).reshape(rows, 1, -1) for name in of_state]
            states[tensor.name] = np.hstack(found).reshape(shape) if found else np.zeros(shape, np.float32)
    assert not left
    assert len(means) == 11 * config.unets
    first, parts = 0, []
    steps = iter(sizes * 100)
    while (count := min(next(steps), audio.shape[1] // HOP_SAMPLES - 1 - first)) > 0:
        if first < LOOKAHEAD_FRAMES:  # the second U-Net begins there
            count = min(count, LOOKAHEAD_FRAMES - first)
        if first == LOOKAHEAD_FRAMES:
            states = {name: begun(name, state) for name, state in states.items()}
        hold = np.zeros((rows, lag + 1, count, count + 1), np.float32)
        hold[..., 0] = 1
        feeds = {AVERAGING_INPUT: hold, "audio": audio[:, HOP_SAMPLES * (first + 1) :][:, : HOP_SAMPLES * count]}
        part, *following = session.run(None, feeds | states)
        states = dict(zip(states, following, strict=True))
        parts.append(part)
        first += count
    # Frame `lag` is the first: its first hop lies in one window only, and the half-window of silence is there.
    return np.concatenate(parts, axis=1)[:, lag * HOP_SAMPLES :]


def begun(name: str, state: np.ndarray) -> np.ndarray:
    """Return a state for the start of the second U-Net: zeros, except for the means."""
    return np.zeros_like(state) if "/unet2." in name and SE_LAYERS not in name else state


@pytest.mark.parametrize("form", ["direct", "plain", "step"])
@pytest.mark.parametrize("sizes", [[1], [3], [1, 7, 2, 16]], ids=str)
def test_with_the_means_of_the_whole_pass_it_gives_the_whole_pass(
    form: Form,
    sizes: list[int],
    config: Config,
    step_session: Callable[..., Any],
    audio: np.ndarray,
    whole: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    expected, means = whole
    found = run_in_steps(step_session(form), audio, config, means, sizes)
    used = slice(HOP_SAMPLES, (1 + FRAMES) * HOP_SAMPLES)
    for row in range(2):
        error = np.abs(found[row, used] - expected[row, used]).max()
        assert error <= 1e-6 * np.abs(expected[row]).max()


def test_the_whole_signals_means_matter(weights: dict[str, np.ndarray], config: Config) -> None:
    """Each of the means has a state and is used, so the test above depends on all of them."""
    model = build_graph(weights, "step", "0", {}, "plain", timeline=Stepwise)
    names = [tensor.name for tensor in model.graph.input if "se_layers" in tensor.name]
    used = {name for node in model.graph.node for name in node.input}
    assert set(names) <= used
    assert len(model.graph.output) == len([t for t in model.graph.input if t.name.startswith("state")]) + 1


@pytest.fixture(scope="module")
def ranges(weights: dict[str, np.ndarray]) -> Ranges:
    noise = np.random.default_rng(1).standard_normal((2, 16_000)).astype(np.float32)
    return measure_ranges(weights, list(0.05 * noise))


class TestInt8:
    """The quantized network as a step: its ranges are those of a frame, so they hold for a stream as well."""

    def test_ranges_come_back_from_text(self, ranges: Ranges) -> None:
        found = Ranges.from_json(ranges.to_json())
        assert found.inputs == ranges.inputs
        assert found.fsmn.keys() == ranges.fsmn.keys()
        for name, block in ranges.fsmn.items():
            for key, value in vars(block).items():
                np.testing.assert_array_equal(getattr(found.fsmn[name], key), np.float32(value))

    @pytest.mark.parametrize("known", [False, True], ids=["dynamic", "static"])
    def test_it_gives_the_whole_pass_up_to_rounding(
        self, known: bool, ranges: Ranges, config: Config, weights: dict[str, np.ndarray], audio: np.ndarray
    ) -> None:
        """With the means of the whole pass held."""
        ranges = ranges if known else Ranges(ranges.fsmn)
        graph = IntegerNetwork(weights, ranges, frozenset()).build("w", "0", {})
        # The means of a layer: two halves put together, and given a shape.
        made_by = {name: node for node in graph.graph.node for name in node.output}
        layers = {
            node.output[0]: ".".join(node.name.split("/")[:-1])
            for node in graph.graph.node
            if SE_LAYERS in node.name and node.op_type == "Reshape" and made_by[node.input[0]].op_type == "Concat"
        }
        assert len(layers) == 11 * config.unets
        graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in layers)
        expected, *found = cpu_session(graph.SerializeToString(), 2).run(None, {"audio": audio[:1]})
        means = dict(zip(layers.values(), found, strict=True))
        network = IntegerNetwork(weights, ranges, frozenset(), timeline=Stepwise)
        session = cpu_session(network.build("s", "0", {}).SerializeToString(), 2)
        found = run_in_steps(session, audio[:1], config, means, [LOOKAHEAD_FRAMES, 1000])
        used = slice(HOP_SAMPLES, (1 + FRAMES) * HOP_SAMPLES)
        error = found[0, used] - expected[0, used]
        assert 10 * np.log10(np.mean(expected[0, used] ** 2) / np.mean(error**2)) > 40

    @pytest.mark.parametrize("lookahead", [0, 3])
    @pytest.mark.parametrize("kind", ["float", "dynamic", "static"])
    def test_with_less_look_ahead_it_gives_what_the_float_step_does(
        self,
        kind: str,
        lookahead: int,
        ranges: Ranges,
        config: Config,
        weights: dict[str, np.ndarray],
        step_session: Callable[..., Any],
        audio: np.ndarray,
    ) -> None:
        """Equal up to the order of sums with all groups in float, and up to rounding in integers."""
        expected = first_step(step_session("direct", lookahead), audio, lookahead, config)
        keep = frozenset(group_names(config) if kind == "float" else ())
        known = Ranges(ranges.fsmn) if kind == "dynamic" else ranges
        network = IntegerNetwork(weights, known, keep, partial(Stepwise, lookahead=lookahead))
        session = cpu_session(network.build("s", "0", {}).SerializeToString(), 2)
        found = first_step(session, audio, lookahead, config)
        if kind == "float":
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        else:
            assert 0 < np.mean((found - expected) ** 2) < 10**-3 * np.mean(expected**2)


def first_step(session: Any, audio: np.ndarray, lookahead: int, config: Config) -> np.ndarray:
    """Return the output of a step with this look-ahead for the first 30 hops, with all means zero."""
    lag, count = lookahead * config.unets, 30
    hold = np.zeros((1, lag + 1, count, count + 1), np.float32)
    feeds = {"audio": audio[:1, : count * HOP_SAMPLES], AVERAGING_INPUT: hold}
    for tensor in session.get_inputs():
        if tensor.name.startswith("state"):
            shape = [1 if isinstance(size, str) else size for size in tensor.shape]
            feeds[tensor.name] = np.zeros(shape, np.float32)
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("lookahead", [0, 3])
@pytest.mark.parametrize("form", ["direct", "plain", "step"])
def test_with_less_look_ahead_the_last_frames_do_not_matter(
    form: Form, lookahead: int, config: Config, step_session: Callable[..., Any], audio: np.ndarray
) -> None:
    """The lag is shorter, the forms agree, and a change of a frame shows within the lag."""
    lag = lookahead * config.unets

    def run(form: Form, audio: np.ndarray) -> np.ndarray:
        return first_step(step_session(form, lookahead), audio, lookahead, config)

    found = run(form, audio)
    np.testing.assert_allclose(found, run("direct", audio), atol=1e-5 * np.abs(found).max())
    changed = audio.copy()
    changed[:, 20 * HOP_SAMPLES : 21 * HOP_SAMPLES] *= -1
    difference = np.abs(run(form, changed) - found)[0].reshape(-1, HOP_SAMPLES).max(axis=1)
    # Frame 20 is the first with that hop, and is output `lag` hops later: at once with a lag of 0.
    assert not difference[:20].any()
    assert difference[20 : 20 + lag + 1].max() > 1e-4


def test_a_step_is_no_model_for_whole_signals(tmp_path, weights: dict[str, np.ndarray]) -> None:
    """The metadata say that it is a step, so it is refused as a model."""
    from frcrn_accel import Denoiser, ModelError
    from frcrn_accel.models import ModelMetadata

    metadata = ModelMetadata("step", "0", "0", 16_000, 640, 320, 8, 1, is_step=True)
    path = tmp_path / "step.onnx"
    model = build_graph(weights, "step", "0", metadata.to_properties(), "plain", timeline=Stepwise)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"step\.onnx' is a step of a stream"):
        Denoiser(path, backend=OrtBackend)
