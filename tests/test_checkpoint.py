from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import upstream
from checkpoints import save_checkpoint
from frcrn_accel import ModelError, known_models
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import model_name
from frcrn_accel.network.checkpoint import load_checkpoint, normalise_state_dict
from frcrn_accel.network.topology import Config, parameter_shapes

torch = pytest.importorskip("torch")

CHANNELS = 16


@pytest.fixture(scope="module")
def released():
    """A state dict as upstream's module writes it, with unused modules, double names and fixed kernels."""
    state = upstream.build(CHANNELS).state_dict()
    assert {
        "stft.weight",
        "unet.encoder0.conv.conv_re.weight",
        "unet.fsmn_enc0.fsmn_re_L1.linear.bias",
    } <= state.keys()
    return state


@pytest.fixture
def saved(tmp_path):
    def save(content):
        path = tmp_path / "model.pt"
        torch.save(content, path)
        return path

    return save


def small_format(state):
    """Return only the tensors that the first U-Net uses, once each, like the packaged model's checkpoint."""
    return {key: state[key] for key in parameter_shapes(Config(CHANNELS, 1))}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
        lambda state: {"model": state},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"module.model.{key}": value for key, value in state.items()},
        lambda state: {key: value for key, value in state.items() if ".encoders." not in key},
        lambda state: {key: value.double() for key, value in state.items()},
    ],
    ids=["hub", "fine-tuned", "wrapped", "data-parallel", "both prefixes", "one name each", "double"],
)
def test_every_format_gives_the_same_weights(released, saved, wrap):
    loaded = load_checkpoint(saved(wrap(released)))
    assert loaded.config == Config(CHANNELS, 2)
    assert loaded.weights.keys() == parameter_shapes(loaded.config).keys()
    for key, value in loaded.weights.items():
        np.testing.assert_array_equal(value, released[key].numpy())
        assert value.dtype == np.float32


def test_one_unet(released, saved):
    loaded = load_checkpoint(saved(small_format(released)))
    assert loaded.config == Config(CHANNELS, 1)


def test_names(released, saved):
    path = saved(small_format(released))
    digest = load_checkpoint(path).sha256
    assert digest == sha256_of(path)
    assert model_name(path, None, digest) == "model"
    assert model_name(path, "mine", digest) == "mine"
    with pytest.raises(
        ModelError, match=r"not the known checkpoint of 'frcrn-16k': its sha256 is .*, expected 477a2f82"
    ):
        model_name(path, "frcrn-16k", digest)


def test_a_known_file_has_its_known_name():
    known = known_models()["frcrn-16k"]
    assert model_name(Path("any.pt"), None, known.checkpoint_sha256) == "frcrn-16k"
    assert model_name(Path("any.pt"), "frcrn-16k", known.checkpoint_sha256) == "frcrn-16k"


class TestRefused:
    def test_missing_unexpected_and_wrong_shapes_are_listed(self, released):
        state = dict(released)
        for prefix in ("unet.encoder3", "unet.encoders.3"):
            del state[f"{prefix}.conv.conv_re.weight"]
        state["unet.attention.weight"] = torch.zeros(3)
        for prefix in ("unet2.decoder1", "unet2.decoders.1"):
            state[f"{prefix}.bn.bn_im.bias"] = torch.zeros(7)
        with pytest.raises(ModelError) as caught:
            normalise_state_dict(state)
        text = str(caught.value)
        assert "missing: unet.encoders.3.conv.conv_re.weight;" in text
        assert "unexpected: unet.attention.weight;" in text
        assert f"unet2.decoders.1.bn.bn_im.bias (7,), expected ({CHANNELS},)" in text

    def test_many_are_counted(self, released):
        state = {key: value for key, value in released.items() if "decoder" not in key}
        with pytest.raises(ModelError, match=r"missing: .* and \d+ more"):
            normalise_state_dict(state)

    def test_two_names_with_different_tensors(self, released):
        state = dict(released)
        state["unet.encoder3.conv.conv_re.weight"] = state["unet.encoder3.conv.conv_re.weight"] + 1
        with pytest.raises(ModelError, match=r"two different tensors for 'unet\.encoders\.3\.conv"):
            normalise_state_dict(state)

    def test_not_finite(self, released):
        state = small_format(released)
        state["unet.linear.conv_re.bias"] = torch.tensor([float("nan")])
        with pytest.raises(ModelError, match=r"not finite: unet\.linear\.conv_re\.bias"):
            normalise_state_dict(state)

    def test_another_transform(self, released):
        state = dict(released)
        state["stft.weight"] = state["stft.weight"] * 1.01
        with pytest.raises(ModelError, match="640/320 transform"):
            normalise_state_dict(state)

    @pytest.mark.parametrize(
        "content", [{}, [], {"a": torch.zeros(1)}, {1: torch.zeros(1)}, {"state_dict": {}}, None]
    )
    def test_no_frcrn(self, saved, content):
        with pytest.raises(ModelError, match=r"model\.pt': it does not hold an? "):
            load_checkpoint(saved(content))

    def test_values_that_are_no_tensors(self, released, saved):
        with pytest.raises(ModelError, match="'epoch' is not a tensor but int"):
            load_checkpoint(saved({**released, "epoch": 3}))

    def test_a_missing_file(self, tmp_path):
        with pytest.raises(ModelError, match="No such file"):
            load_checkpoint(tmp_path / "none.pt")

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", pickle.dumps([1, 2])[:-3]])
    def test_a_file_of_something_else(self, tmp_path, content):
        path = tmp_path / "model.pt"
        path.write_bytes(content)
        with pytest.raises(ModelError, match="not a file of plain tensors"):
            load_checkpoint(path)

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path, saved):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "exploded"), "w"))

        with pytest.raises(ModelError, match="not a file of plain tensors"):
            load_checkpoint(saved({"unet": Bomb()}))
        assert not (tmp_path / "exploded").exists()


def test_the_mean_of_two(tmp_path, released):
    paths = [tmp_path / f"{name}.pt" for name in ("first", "second", "mean")]
    weights = normalise_state_dict(released)
    for path, times in zip(paths, (1, 3), strict=False):
        save_checkpoint({key: times * value for key, value in weights.items()}, path)
    script = Path(__file__).parent.parent / "scripts/average_checkpoints.py"
    command = [sys.executable, script, *paths, "--share", "0.25"]
    subprocess.run(command, check=True, capture_output=True)
    first, _, mean = (load_checkpoint(path).weights for path in paths)
    assert mean.keys() == first.keys()
    for key, weight in first.items():
        np.testing.assert_allclose(mean[key], 1.5 * weight, rtol=1e-6)
