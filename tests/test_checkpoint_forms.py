"""Checkpoints as other people write them: every wrapping of the weights, and what is not weights."""

from __future__ import annotations

import argparse
import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints import state_of
from frcrn_accel import ModelError
from frcrn_accel.network.checkpoint import load_checkpoint, normalise_state_dict
from frcrn_accel.network.topology import Config
from frcrn_accel.testing import random_weights

torch = pytest.importorskip("torch")

CONFIG = Config(8, 1)
WEIGHTS = random_weights(CONFIG)
STATE = state_of(WEIGHTS)
FIRST = "unet.encoders.0.conv.conv_re.weight"
PARTS = ("module.", "model.", "_orig_mod.", "net.", "_fsdp_wrapped_module.", "denoiser.0.")


def check(content: object) -> None:
    weights = normalise_state_dict(content)
    assert weights.keys() == WEIGHTS.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(value, WEIGHTS[key])


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


class TestPrefixes:
    @pytest.mark.parametrize("parts", [*itertools.permutations(PARTS[:3], 2), ("module.", "module.")])
    def test_two(self, parts: tuple[str, ...]) -> None:
        check({"".join(parts) + key: value for key, value in STATE.items()})

    @given(st.lists(st.sampled_from(PARTS), max_size=5))
    @settings(max_examples=25, derandomize=True, database=None, deadline=None)
    def test_any(self, parts: list[str]) -> None:
        check({"".join(parts) + key: value for key, value in STATE.items()})

    def test_inside(self) -> None:
        check({key.replace("unet.", "unet._orig_mod.", 1): value for key, value in STATE.items()})

    def test_one_key_under_two_names(self) -> None:
        check({**STATE, f"module.{FIRST}": STATE[FIRST].clone()})
        with pytest.raises(ModelError, match="two different tensors"):
            normalise_state_dict({**STATE, f"module.{FIRST}": STATE[FIRST] + 1})

    def test_two_networks(self) -> None:
        both = {f"{name}.{key}": value for name in ("teacher", "student") for key, value in STATE.items()}
        with pytest.raises(ModelError, match=r"several networks, 'student\.', 'teacher\.'"):
            normalise_state_dict(both)

    def test_part_of_a_name_is_no_prefix(self) -> None:
        with pytest.raises(ModelError, match="does not hold an FRCRN"):
            normalise_state_dict({f"my_{key}": value for key, value in STATE.items()})

    def test_modules_beside_the_network_are_left_out(self) -> None:
        check({**{f"model.{key}": value for key, value in STATE.items()}, "loss.window": torch.ones(3), "epoch": 3})

    def test_two_names_of_dense_layers(self) -> None:
        check({key.replace(".0.weight", ".layers.0.weight"): value for key, value in STATE.items()})


class TestWrappers:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state, other: {"ema": state},
            lambda state, other: {"model_state_dict": state, "epoch": 3},
            lambda state, other: {"model": {"state_dict": state, "config": {"a": 1}}},
            lambda state, other: {"state_dict": state, "ema": other},
            lambda state, other: {"step": 3, "network": other, "average": state, "optimiser": {"state": {}}},
            lambda state, other: {"checkpoint": {"generator": {f"module.{k}": v for k, v in state.items()}}},
        ],
    )
    def test_they_are_found(self, wrap) -> None:
        check(wrap(STATE, {key: value + 1 for key, value in STATE.items()}))

    @given(st.lists(st.sampled_from(["ema_model", "nets", "generator", "x.y", 0, 1, "list"]), max_size=12))
    @settings(max_examples=25, derandomize=True, database=None, deadline=None)
    def test_any_depth(self, names: list[str | int]) -> None:
        content: object = STATE
        for name in names:
            content = [{}, content, 3] if name == "list" else {name: content, "step": 7, "optimiser": {"state": [{}]}}
        check(content if isinstance(content, dict) else {"all": content})

    def test_a_mapping_that_holds_itself(self) -> None:
        content: dict[str, object] = {"state_dict": STATE}
        content["self"] = [content, content]
        check(content)
        del content["state_dict"]
        with pytest.raises(ModelError, match=r"does not hold an FRCRN .*: it holds: self$"):
            normalise_state_dict(content)

    def test_several_without_a_rule(self) -> None:
        with pytest.raises(ModelError, match="it holds several networks, 'generator', 'ema'"):
            normalise_state_dict({"generator": STATE, "ema": STATE})

    def test_scores_of_numpy_beside_the_weights(self, tmp_path: Path) -> None:
        content = {"state_dict": STATE, "best": np.float64(3.5), "curve": np.arange(3), "epoch": np.int64(7)}
        loaded = load_checkpoint(saved(content, tmp_path / "a.pt"))
        assert loaded.config == CONFIG

    def test_options_of_a_script_beside_the_weights(self, tmp_path: Path) -> None:
        content = {"args": argparse.Namespace(lr=0.1), "generator": STATE}
        assert load_checkpoint(saved(content, tmp_path / "a.ckpt")).config == CONFIG

    def test_other_objects_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"a Python object, fractions\.Fraction\. Save the state dict alone"):
            load_checkpoint(saved({"model": STATE, "rate": Fraction(1, 3)}, tmp_path / "a.ckpt"))

    def test_arrays_of_numpy_as_weights(self, tmp_path: Path) -> None:
        loaded = load_checkpoint(saved({k: v.astype(np.float64) for k, v in WEIGHTS.items()}, tmp_path / "a.pt"))
        for key, value in loaded.weights.items():
            np.testing.assert_array_equal(value, WEIGHTS[key])
            assert value.dtype == np.float32


class TestTensorsThatAreNoWeights:
    @pytest.mark.parametrize(
        ("odd", "message"),
        [
            (lambda t: t.to("meta"), "has a shape but no values"),
            (lambda t: t.to(torch.complex64), "holds complex64 numbers"),
            (lambda t: t.to(torch.int8), "holds int8 numbers"),
            (lambda t: t.numpy().astype(complex), "holds complex128 numbers"),
            (lambda t: [1.0], "is not a tensor but list"),
        ],
    )
    def test_they_are_named(self, odd, message: str) -> None:
        with pytest.raises(ModelError, match=f"{FIRST!r} {message}"):
            normalise_state_dict({**STATE, FIRST: odd(STATE[FIRST])})

    def test_sparse_ones_are_filled(self) -> None:
        check({**STATE, FIRST: STATE[FIRST].to_sparse()})


class TestFiles:
    def test_cut_files_are_damaged(self, tmp_path: Path) -> None:
        whole = saved(STATE, tmp_path / "a.pt").read_bytes()
        for length in (1, 100, len(whole) // 2, len(whole) - 1):
            (tmp_path / "cut.pt").write_bytes(whole[:length])
            with pytest.raises(ModelError, match=r"written by torch\.save, or is damaged$"):
                load_checkpoint(tmp_path / "cut.pt")
