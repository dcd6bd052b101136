"""Files of weights that PyTorch did not write: safetensors, and NumPy's and MLX's .npz."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frcrn_accel import ModelError
from frcrn_accel.network.checkpoint import load_checkpoint, normalise_state_dict
from frcrn_accel.network.topology import Config, stft_kernel, stft_synthesis_scale, stft_window
from frcrn_accel.testing import random_weights

CONFIG = Config(8, 2)
WEIGHTS = random_weights(CONFIG)
CONVOLUTION = "unet.encoders.1.conv.conv_re.weight"
SQUARE = "unet.decoders.0.transconv.tconv_re.weight"  # as many inputs as outputs
FILTER = "unet.fsmn.fsmn_re_L1.conv1.weight"


def mlx(weights: dict[str, np.ndarray], filter_rank: int = 3) -> dict[str, np.ndarray]:
    """Return the weights as MLX's modules keep them: channels last, outputs first."""
    found = {}
    for key, value in weights.items():
        if key.endswith(".conv1.weight"):
            value = value.reshape((8, 20, 1, 1)[:filter_rank])
        elif value.ndim == 4:
            value = value.transpose((1, 2, 3, 0) if ".tconv_" in key else (0, 2, 3, 1))
        found["model." + re.sub(r"(\.fc_[ri]\.)", r"\1layers.", key)] = value
    found["model.stft.weight"] = stft_kernel()[..., None]
    found["model.istft.weight"] = (stft_kernel() * stft_synthesis_scale()[:, None]).T[None]
    found["model.istft.window_sum"] = np.ones(16_000, np.float32)
    return found


def in_swift(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return MLX's weights under the names of Swift's modules, which cannot be in lists."""
    found = {}
    for key, value in mlx(weights).items():
        for name in ("encoders", "decoders", "fsmn_enc", "fsmn_dec", "se_layers_enc", "se_layers_dec"):
            key = key.replace(f".{name}.", f".{name}_")
        found[key.replace(".layers.0.", ".linear1.").replace(".layers.2.", ".linear2.")] = value
    return found


def check(path: Path) -> None:
    loaded = load_checkpoint(path)
    assert loaded.config == CONFIG
    assert loaded.weights.keys() == WEIGHTS.keys()
    for key, value in loaded.weights.items():
        np.testing.assert_array_equal(value, WEIGHTS[key])


class TestNpz:
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_in_the_order_of_pytorch(self, tmp_path: Path, save: Any) -> None:
        save(tmp_path / "a.npz", **{f"module.{key}": value for key, value in WEIGHTS.items()})
        check(tmp_path / "a.npz")

    @pytest.mark.parametrize("filter_rank", [3, 4])
    def test_in_the_order_of_mlx(self, tmp_path: Path, filter_rank: int) -> None:
        np.savez(tmp_path / "a.npz", **mlx(WEIGHTS, filter_rank))
        check(tmp_path / "a.npz")

    def test_with_the_names_of_swift(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "weights", **in_swift(WEIGHTS))
        check(tmp_path / "weights.npz")

    def test_with_channels_moved_to_the_end(self, tmp_path: Path) -> None:
        moved = {key: np.moveaxis(value, 1, -1) if value.ndim == 4 else value for key, value in WEIGHTS.items()}
        np.savez(tmp_path / "a.npz", **moved)
        check(tmp_path / "a.npz")

    def test_arrays_in_the_order_of_fortran(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **{key: np.asfortranarray(value) for key, value in WEIGHTS.items()})
        check(tmp_path / "a.npz")

    def test_bfloat16_is_what_mlx_writes(self, tmp_path: Path) -> None:
        upper = {key: (value.view(np.uint32) >> 16).astype("<u2").view("V2") for key, value in WEIGHTS.items()}
        np.savez(tmp_path / "a.npz", **upper)
        for key, value in load_checkpoint(tmp_path / "a.npz").weights.items():
            np.testing.assert_array_equal(value.view(np.uint32), WEIGHTS[key].view(np.uint32) & 0xFFFF0000)

    def test_half_precision(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", **{key: value.astype(np.float16) for key, value in WEIGHTS.items()})
        for key, value in load_checkpoint(tmp_path / "a.npz").weights.items():
            np.testing.assert_array_equal(value, WEIGHTS[key].astype(np.float16).astype(np.float32))

    def test_mlx_itself(self, tmp_path: Path) -> None:
        mx = pytest.importorskip("mlx.core")
        mx.savez(str(tmp_path / "a.npz"), **{key: mx.array(value) for key, value in mlx(WEIGHTS).items()})
        check(tmp_path / "a.npz")
        pytest.importorskip("safetensors")
        mx.save_safetensors(
            str(tmp_path / "a.safetensors"), {key: mx.array(value) for key, value in mlx(WEIGHTS).items()}
        )
        check(tmp_path / "a.safetensors")
        half = {key: mx.array(value).astype(mx.bfloat16) for key, value in mlx(WEIGHTS).items()}
        mx.savez(str(tmp_path / "half.npz"), **half)
        mx.save_safetensors(str(tmp_path / "half.safetensors"), half)
        one, other = (load_checkpoint(tmp_path / name).weights for name in ("half.npz", "half.safetensors"))
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key])


class TestOrderOfAxes:
    @pytest.mark.parametrize("key", [CONVOLUTION, "unet2.decoders.3.transconv.tconv_im.weight"])
    def test_layers_that_contradict_each_other(self, key: str) -> None:
        mixed = {**WEIGHTS, key: mlx(WEIGHTS)[f"model.{key}"]}
        with pytest.raises(ModelError, match="some of its convolutions have their channels first"):
            normalise_state_dict(mixed)

    def test_a_square_layer_follows_the_others(self) -> None:
        given = mlx(WEIGHTS)
        assert given[f"model.{SQUARE}"].shape == (8, 2, 2, 8)
        np.testing.assert_array_equal(normalise_state_dict(given)[SQUARE], WEIGHTS[SQUARE])

    def test_a_wrong_shape_is_still_one(self) -> None:
        with pytest.raises(ModelError, match=rf"wrong shape: {CONVOLUTION} \(8, 8, 3, 2\), expected \(8, 8, 5, 2\)"):
            normalise_state_dict({**WEIGHTS, CONVOLUTION: np.zeros((8, 8, 3, 2), np.float32)})

    def test_another_transform(self) -> None:
        with pytest.raises(ModelError, match=r"'stft.weight' is not the 640/320 transform"):
            normalise_state_dict({**mlx(WEIGHTS), "model.stft.weight": np.zeros((642, 640, 1), np.float32)})


class TestDamagedNpz:
    def written(self, path: Path, header: dict[str, Any], data: bytes) -> Path:
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, header)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{CONVOLUTION}.npy", content.getvalue() + data)
        return path

    @pytest.mark.parametrize("shape", [(10**9, 10**9), (2**40,), (3,)])
    def test_a_header_that_says_too_much(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        path = self.written(tmp_path / "a.npz", {"descr": "<f4", "fortran_order": False, "shape": shape}, bytes(8))
        with pytest.raises(ModelError, match=r"damaged \.npz file: "):
            load_checkpoint(path)

    def test_python_objects(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", weights=np.array({"unet": 1}, dtype=object))
        with pytest.raises(ModelError, match="'weights' holds Python objects, which are not read"):
            load_checkpoint(tmp_path / "a.npz")

    def test_one_that_unpacks_to_more_than_fits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("frcrn_accel.network.tensor_files.MAX_BYTES", 10_000_000)
        np.savez_compressed(tmp_path / "a.npz", zeros=np.zeros(3_000_000, np.float32))
        assert (tmp_path / "a.npz").stat().st_size < 100_000
        with pytest.raises(ModelError, match=r"unpacks to 0\.0 GB, more than any FRCRN needs"):
            load_checkpoint(tmp_path / "a.npz")

    @given(st.integers(0, 10_000), st.integers(0, 255))
    @settings(max_examples=30, derandomize=True, database=None, deadline=None)
    def test_a_changed_byte(self, tmp_path_factory: pytest.TempPathFactory, place: int, value: int) -> None:
        content = io.BytesIO()
        np.savez_compressed(content, **{CONVOLUTION: WEIGHTS[CONVOLUTION], "other": np.arange(3)})
        changed = bytearray(content.getvalue())
        changed[place % len(changed)] = value
        path = tmp_path_factory.mktemp("changed") / "a.npz"
        path.write_bytes(changed)
        with pytest.raises(ModelError):  # that it is damaged, or that the rest is missing
            load_checkpoint(path)


class TestSafetensors:
    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("safetensors")
        pytest.importorskip("torch")

    def saved(self, path: Path, tensors: dict[str, np.ndarray]) -> Path:
        from safetensors.numpy import save_file

        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
        return path

    @pytest.mark.parametrize("prefix", ["", "model.", "generator.module.", "_orig_mod."])
    def test_prefixes(self, tmp_path: Path, prefix: str) -> None:
        check(self.saved(tmp_path / "a.safetensors", {prefix + key: value for key, value in WEIGHTS.items()}))

    def test_any_name_of_the_file(self, tmp_path: Path) -> None:
        check(self.saved(tmp_path / "pytorch_model.bin", WEIGHTS))

    def test_in_the_order_of_mlx(self, tmp_path: Path) -> None:
        check(self.saved(tmp_path / "model_fp32.safetensors", mlx(WEIGHTS)))
        check(self.saved(tmp_path / "swift.safetensors", in_swift(WEIGHTS)))

    def test_with_the_windows_of_the_transform(self, tmp_path: Path) -> None:
        windows = {f"{name}_window": stft_window().astype(np.float32) for name in ("stft", "istft")}
        check(self.saved(tmp_path / "a.safetensors", {**WEIGHTS, **windows}))

    def test_bfloat16(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file

        half = {key: torch.tensor(value).bfloat16() for key, value in WEIGHTS.items()}
        save_file(half, tmp_path / "a.safetensors")
        for key, value in load_checkpoint(tmp_path / "a.safetensors").weights.items():
            np.testing.assert_array_equal(value, half[key].float().numpy())

    @pytest.mark.parametrize(
        ("header", "data"),
        [
            ({}, bytes(8)),
            ({CONVOLUTION: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(4)),
            ({CONVOLUTION: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, bytes(8)),
            ({CONVOLUTION: {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
            ({CONVOLUTION: {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
            (
                {name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in ("a", "b")},
                bytes(8),
            ),
        ],
        ids=["not covered", "cut", "huge", "backwards", "no dtype", "overlapping"],
    )
    def test_a_header_that_lies(self, tmp_path: Path, header: dict[str, Any], data: bytes) -> None:
        text = json.dumps(header).encode()
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
        with pytest.raises(ModelError, match="it is a damaged file of safetensors: "):
            load_checkpoint(tmp_path / "a.safetensors")

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        some = {key: value for key, value in WEIGHTS.items() if key != CONVOLUTION}
        with pytest.raises(ModelError, match=f"missing: {CONVOLUTION}$"):
            load_checkpoint(self.saved(tmp_path / "a.safetensors", some))


def test_a_file_of_several_gigabytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as file:
        file.truncate(3 * 1024**3)  # without blocks on the disk
    with pytest.raises(ModelError, match=r"it has 3\.2 GB, more than any FRCRN needs \(at most 2\.1 GB\)"):
        load_checkpoint(tmp_path / "a.pt")
