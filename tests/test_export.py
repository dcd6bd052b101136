from __future__ import annotations

import numpy as np
import pytest

from checkpoints import save_checkpoint, state_of
from frcrn_accel import Denoiser, ExportError, ModelError, OutputExistsError, __version__
from frcrn_accel.digest import sha256_of
from frcrn_accel.export import MAX_ERROR, difference_from_pytorch, export_model
from frcrn_accel.models import find_model, read_weights
from frcrn_accel.network.topology import Config, stft_kernel
from frcrn_accel.testing import random_weights

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """One U-Net of 16 channels with random weights."""
    return save_checkpoint(random_weights(Config(16, 1)), tmp_path_factory.mktemp("checkpoint") / "tiny.pt")


def test_metadata_and_weights_are_in_the_file(checkpoint, tmp_path):
    report = export_model(checkpoint, tmp_path / "tiny.onnx", name="my-model")
    metadata = find_model(tmp_path / "tiny.onnx").metadata
    assert report.model.metadata == metadata
    assert report.difference <= 1e-4
    assert metadata.name == "my-model"
    assert metadata.checkpoint_sha256 == sha256_of(checkpoint)
    assert metadata.library_version == __version__
    assert (metadata.channels, metadata.unets) == (16, 1)
    stored = read_weights(tmp_path / "tiny.onnx")
    for key, value in torch.load(checkpoint, weights_only=True).items():
        np.testing.assert_array_equal(stored[key], value.numpy())


def test_an_exported_model_denoises(checkpoint, tmp_path, noisy):
    export_model(checkpoint, tmp_path / "tiny.onnx")
    out = Denoiser(tmp_path / "tiny.onnx", backend="ort")(noisy[:16_000], 16_000)
    assert out.shape == (16_000,)


def test_the_same_checkpoint_gives_the_same_file(checkpoint, tmp_path):
    for name in ("a.onnx", "b.onnx"):
        export_model(checkpoint, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_file_is_not_replaced_unasked(checkpoint, tmp_path):
    out = tmp_path / "tiny.onnx"
    out.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"tiny\.onnx' exists"):
        export_model(checkpoint, out)
    assert out.read_bytes() == b"precious"
    export_model(checkpoint, out, overwrite=True)
    assert find_model(out).metadata.channels == 16


def test_a_graph_that_differs_from_pytorch_is_not_written(checkpoint, tmp_path, monkeypatch):
    from frcrn_accel.graph import gauss

    monkeypatch.setattr(gauss, "LEAKY_SLOPE", 0.02)
    with pytest.raises(ExportError, match=r"differs from PyTorch by .* was not written"):
        export_model(checkpoint, tmp_path / "tiny.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ruin", ["negative variance", "all weights zero"])
def test_a_model_that_gives_no_audio_is_not_written(ruin, tmp_path):
    """Its weights are finite, and the graph agrees with PyTorch: both output NaN, or zeros."""
    weights = state_of(random_weights(Config(16, 1)))
    if ruin == "negative variance":
        weights["unet.encoders.3.bn.bn_re.running_var"] -= 100
    else:
        weights = {key: torch.zeros_like(value) for key, value in weights.items()}
    torch.save(weights, tmp_path / "ruined.pt")
    with pytest.raises(ExportError, match=r"output on noise is not finite, or all zeros: .* was not written"):
        export_model(tmp_path / "ruined.pt", tmp_path / "ruined.onnx")
    assert not (tmp_path / "ruined.onnx").exists()


def test_a_folder_that_is_not_there(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="cannot be written: No such file"):
        export_model(checkpoint, tmp_path / "no" / "tiny.onnx")


def test_weights_of_another_onnx_file(tmp_path):
    import onnx
    from onnx import helper

    graph = helper.make_graph([], "empty", [], [])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match="does not hold the weights"):
        read_weights(tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(ModelError, match="is not an ONNX file"):
        read_weights(tmp_path / "text.onnx")


def test_the_fourier_kernel_is_computed_from_small_constants(tiny):
    """It equals `stft_kernel` up to the rounding of the cosines."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper

    model = onnx.load(tiny.path)
    assert max(np.prod(t.dims) for t in model.graph.initializer if t.name.startswith("constant_")) <= 1_284
    (convolution,) = (node for node in model.graph.node if node.name == "stft/Conv")
    model.graph.output.append(helper.make_tensor_value_info(convolution.input[1], TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    kernel = session.run([convolution.input[1]], {"audio": np.zeros((1, 640), np.float32)})[0]
    np.testing.assert_allclose(kernel[:, 0], stft_kernel(), atol=1e-7)


def test_a_quantized_file_is_no_source_of_weights(tiny, tmp_path):
    import onnx

    model = onnx.load(tiny.path)
    properties = {**tiny.metadata.to_properties(), "frcrn_accel.method": "fp16", "frcrn_accel.source_sha256": "abc"}
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, tmp_path / "half.onnx")
    with pytest.raises(ModelError, match=r"half\.onnx' is quantized \(fp16\).* give the fp32 file .* \(sha256 abc\)"):
        read_weights(tmp_path / "half.onnx")


def test_the_packaged_model_is_what_its_checkpoint_exports_to(tmp_path):
    """PyTorch with the weights in the packaged file outputs what the file does."""
    model = find_model("frcrn-small")
    assert difference_from_pytorch(model, read_weights(model.path)) <= MAX_ERROR


@pytest.mark.parametrize("config", [Config(16, 1), Config(8, 2)])
def test_the_direct_form_is_the_same_network(config, tmp_path):
    from frcrn_accel.graph.forms import build_graph
    from frcrn_accel.models import ModelMetadata

    weights = random_weights(config)
    metadata = ModelMetadata("tiny", "0" * 64, __version__, 16_000, 640, 320, config.channels, config.unets)
    paths = {form: tmp_path / f"{form}.onnx" for form in ("gauss", "direct", "plain")}
    for form, path in paths.items():
        graph = build_graph(weights, "tiny", __version__, metadata.to_properties(), form)
        path.write_bytes(graph.SerializeToString())
        assert difference_from_pytorch(find_model(path), weights) <= 1e-5
        for key, value in read_weights(path).items():
            np.testing.assert_array_equal(value, weights[key])
    # All weights are stored once; a single tensor for both parts makes a smaller graph.
    assert paths["direct"].stat().st_size < paths["gauss"].stat().st_size
