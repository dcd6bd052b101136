"""ONNX graphs that others exported: upstream's module, as PyTorch's exporter and optimisers leave it."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upstream
from frcrn_accel import ModelError
from frcrn_accel.models import find_model, packaged_files, read_weights
from frcrn_accel.network.checkpoint import checkpoint_digest, load_checkpoint
from frcrn_accel.network.topology import Config

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CHANNELS = 8
SAMPLES = 3_200


@pytest.fixture(scope="module")
def network() -> Any:
    return upstream.build(CHANNELS)


@pytest.fixture(scope="module")
def released(network: Any) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def exported(network: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Export as PyTorch does: dense weights are transposed and renamed, the other weights keep their names."""

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = network

        def forward(self, audio: Any) -> Any:
            return self.model.inference_batch(audio)

    path = tmp_path_factory.mktemp("exported") / "a.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Wrapper().eval(), torch.zeros(1, SAMPLES), path, dynamo=False, opset_version=17, input_names=["noisy"]
        )
    return path.read_bytes()


@pytest.fixture
def model(exported: bytes) -> Any:
    return onnx.load_from_string(exported)


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Any], Any]:
    def save(model: Any) -> Any:
        onnx.save(model, tmp_path / "a.onnx")
        return load_checkpoint(tmp_path / "a.onnx")

    return save


def check(loaded: Any, released: dict[str, np.ndarray]) -> None:
    assert loaded.config == Config(CHANNELS, 2)
    for key, value in loaded.weights.items():
        np.testing.assert_array_equal(value, released[key])


def renamed(model: Any) -> Any:
    """Return the graph with numbered names, and with nodes and weights in another valid order."""
    names: dict[str, str] = {given.name: given.name for given in model.graph.input}

    def number(name: str) -> str:
        return names.setdefault(name, str(len(names))) if name else name

    for tensor in model.graph.initializer:
        tensor.name = number(tensor.name)
    for node in model.graph.node:
        node.input[:] = [number(name) for name in node.input]
        node.output[:] = [number(name) for name in node.output]
        node.name = ""
    for output in model.graph.output:
        output.name = number(output.name)
    rng = random.Random(0)
    weights, nodes = list(model.graph.initializer), list(model.graph.node)
    rng.shuffle(weights)
    rng.shuffle(nodes)
    known = {tensor.name for tensor in weights} | {given.name for given in model.graph.input} | {""}
    ordered = []
    while nodes:
        ready = [node for node in nodes if known.issuperset(node.input)]
        nodes = [node for node in nodes if not known.issuperset(node.input)]
        known.update(name for node in ready for name in node.output)
        ordered += ready
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(weights)
    model.graph.node.extend(ordered)
    return model


def constants(model: Any) -> dict[str, Any]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def folded(model: Any) -> Any:
    """Return the graph with each batch norm folded into the two convolutions before it."""
    arrays, added = constants(model), []
    makers = {output: node for node in model.graph.node for output in node.output}

    def fold(norm: Any) -> None:
        scale, bias, mean, variance = (arrays[name].astype(np.float64) for name in norm.input[1:5])
        scale = scale / np.sqrt(variance + 1e-5)
        pick = makers[norm.input[0]]  # real or imaginary parts, out of both
        part = int(onnx.numpy_helper.to_array(makers[pick.input[1]].attribute[0].t))
        total = makers[makers[makers[pick.input[0]].input[part]].input[0]]
        for i, name in enumerate(total.input):
            convolution = makers[name]
            weight, offset = (arrays[given].astype(np.float64) for given in convolution.input[1:3])
            axes = (1, -1, 1, 1) if convolution.op_type == "ConvTranspose" else (-1, 1, 1, 1)
            if i == 0:  # so the rest of the norm is added once
                offset = offset + (bias / scale - mean)
            for j, array in ((1, weight * scale.reshape(axes)), (2, offset * scale)):
                given = f"folded {len(added)}"
                added.append(onnx.numpy_helper.from_array(array.astype(np.float32), given))
                convolution.input[j] = given
        norm.op_type = "Identity"
        del norm.input[1:], norm.attribute[:]

    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            fold(node)
    model.graph.initializer.extend(added)
    return model


class TestForms:
    def test_as_exported(self, model: Any, load: Any, released: Any) -> None:
        names = constants(model)
        assert "model.unet.fsmn_enc.1.fsmn_re_L1.linear.weight" not in names
        assert any(name.startswith("onnx::MatMul_") for name in names)
        check(load(model), released)

    def test_without_names(self, model: Any, load: Any, released: Any) -> None:
        check(load(renamed(model)), released)

    def test_norms_that_are_folded(self, model: Any, load: Any, released: Any) -> None:
        loaded = load(folded(model))
        key = "unet.encoders.2.conv.conv_im.weight"
        norm = "unet.encoders.2.bn.bn_re"
        scale = released[f"{norm}.weight"] / np.sqrt(released[f"{norm}.running_var"] + 1e-5)
        np.testing.assert_allclose(loaded.weights[key], released[key] * scale[:, None, None, None], rtol=1e-5)

    def test_weights_in_half_precision(self, model: Any, load: Any, released: Any) -> None:
        for tensor in [
            tensor for tensor in model.graph.initializer if "unet" in tensor.name and len(tensor.dims) == 4
        ]:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name} in half"))
            model.graph.node.insert(
                0, onnx.helper.make_node("Cast", [tensor.name], [name], to=onnx.TensorProto.FLOAT)
            )
        loaded = load(model)
        key = "unet2.decoders.2.transconv.tconv_re.weight"
        np.testing.assert_array_equal(loaded.weights[key], released[key].astype(np.float16).astype(np.float32))

    def test_weights_beside_the_file(self, model: Any, tmp_path: Path, released: Any) -> None:
        path = tmp_path / "a.onnx"
        onnx.save(model, path, save_as_external_data=True, location="a.onnx.data", size_threshold=0)
        check(load_checkpoint(path), released)
        digest = checkpoint_digest(path)
        changed = bytearray((tmp_path / "a.onnx.data").read_bytes())
        changed[5_000_000] ^= 1
        (tmp_path / "a.onnx.data").write_bytes(changed)
        assert checkpoint_digest(path) != digest

    def test_a_model_file_of_this_library(self) -> None:
        path = find_model("frcrn-small").path
        loaded, expected = load_checkpoint(path), read_weights(path)
        for key, value in loaded.weights.items():
            np.testing.assert_array_equal(value, expected[key])

    @pytest.mark.parametrize("place", [0, 1])
    def test_another_output_that_is_not_finite(self, model: Any, load: Any, released: Any, place: int) -> None:
        """Python's `max` keeps or drops a NaN depending on where it stands."""
        output = model.graph.output[0]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(np.nan, np.float32), "not a number"))
        model.graph.node.append(onnx.helper.make_node("Mul", [output.name, "not a number"], ["broken"]))
        outputs = [onnx.helper.make_tensor_value_info("broken", 1, None)]
        outputs.insert(1 - place, output)
        del model.graph.output[:]
        model.graph.output.extend(outputs)
        check(load(model), released)


class TestRefused:
    def test_another_activation(self, model: Any, load: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "LeakyRelu")
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("alpha", 0.3))
        with pytest.raises(ModelError, match=r"does not give its graph's output: they agree to \d+\.\d dB on noise"):
            load(model)

    def test_two_weights_where_there_is_one(self, model: Any, load: Any) -> None:
        name = "model.unet.encoder3.conv.conv_re.weight"
        model.graph.initializer.append(onnx.numpy_helper.from_array(2 * constants(model)[name], "other"))
        node = next(node for node in reversed(model.graph.node) if name in node.input)
        node.input[1] = "other"
        with pytest.raises(ModelError, match=r"two different tensors where an FRCRN has unet\.encoders\.3\.conv"):
            load(model)

    def test_a_graph_that_lacks_a_layer(self, model: Any, load: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
        node.op_type = "Identity"
        del node.input[1:], node.attribute[:]
        with pytest.raises(ModelError, match=r"two different tensors|where an FRCRN has unet\.encoders\.0\.bn"):
            load(model)

    def test_another_network(self, load: Any) -> None:
        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        given = [onnx.helper.make_tensor_value_info(name, 1, [1, 800]) for name in "xy"]
        weight = onnx.numpy_helper.from_array(np.zeros((800, 800), np.float32), "w")
        graph = onnx.helper.make_graph([node], "a", given[:1], given[1:], [weight])
        message = r"layer 1 of its graph is a MatMul or Gemm \(800, 800\) where an FRCRN has unet\.encoders\.0"
        with pytest.raises(ModelError, match=message):
            load(onnx.helper.make_model(graph))

    def test_a_quantized_one(self) -> None:
        path = next(file.path for file in packaged_files() if "int8" in file.path.name)
        with pytest.raises(ModelError, match=r"its graph is quantized \(.*\): give the one it was made from"):
            load_checkpoint(path)

    @pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "missing.data", ""])
    def test_weights_in_other_folders(self, model: Any, tmp_path: Path, location: str) -> None:
        (tmp_path / "outside.data").write_bytes(bytes(10_000_000))
        folder = tmp_path / "folder"
        folder.mkdir()
        self.point(model, location, 0)
        onnx.save(model, folder / "a.onnx")
        with pytest.raises(ModelError, match=f"keeps weights in {location!r}, which is not a file beside it"):
            load_checkpoint(folder / "a.onnx")

    def test_a_link_to_another_folder(self, model: Any, tmp_path: Path) -> None:
        (tmp_path / "a.data").symlink_to("/etc/hostname")
        self.point(model, "a.data", 0)
        onnx.save(model, tmp_path / "a.onnx")
        with pytest.raises(ModelError, match="which is not a file beside it"):
            load_checkpoint(tmp_path / "a.onnx")

    def test_a_file_of_weights_that_is_too_short(self, model: Any, tmp_path: Path) -> None:
        (tmp_path / "a.data").write_bytes(bytes(100))
        self.point(model, "a.data", 50)
        onnx.save(model, tmp_path / "a.onnx")
        with pytest.raises(ModelError, match=r"file of weights 'a\.data' is too short: 100 of \d+ bytes"):
            load_checkpoint(tmp_path / "a.onnx")

    @staticmethod
    def point(model: Any, location: str, offset: int) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=value)

    def test_a_graph_that_is_a_circle(self, model: Any, load: Any) -> None:
        node = next(node for node in model.graph.node if node.op_type == "LeakyRelu")
        node.input[0] = model.graph.output[0].name
        with pytest.raises(ModelError, match="its graph"):
            load(model)

    @pytest.mark.parametrize("length", [2, 100, 10_000, -1])
    def test_a_cut_file(self, exported: bytes, tmp_path: Path, length: int) -> None:
        (tmp_path / "a.onnx").write_bytes(exported[:length])
        with pytest.raises(ModelError, match=r"a\.onnx': it(s graph)? "):
            load_checkpoint(tmp_path / "a.onnx")

    def test_names_that_are_no_text(self, exported: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        for old in (b"LeakyRelu", b"noisy"):
            (tmp_path / "a.onnx").write_bytes(exported.replace(old, b"\xff" * len(old)))
            with pytest.raises(ModelError, match=r"its graph is damaged|its graph cannot be run"):
                load_checkpoint(tmp_path / "a.onnx")
        assert capfd.readouterr() == ("", "")

    def test_tensors_that_lie_about_their_size(self, model: Any, load: Any) -> None:
        for tensor in model.graph.initializer:
            tensor.dims[0] += 1
        with pytest.raises(ModelError, match="its graph is damaged"):
            load(model)

    def test_a_graph_of_a_spectrum(self, model: Any, load: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2)
        with pytest.raises(ModelError, match=r"its graph (takes|cannot be run on a waveform)"):
            load(model)
