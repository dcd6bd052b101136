from __future__ import annotations

import dataclasses
import os
import shutil

import pytest

from frcrn_accel import ModelError, ModelFile, known_models
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import DEFAULT_MODEL, ModelMetadata, find_model, packaged_variant


def test_the_default_model_is_in_the_package_and_intact():
    model = find_model(DEFAULT_MODEL)
    known = known_models()[DEFAULT_MODEL]
    assert sha256_of(model.path) == known.model_sha256
    assert model.metadata.name == DEFAULT_MODEL
    assert model.metadata.checkpoint_sha256 == known.checkpoint_sha256
    assert model.metadata.sample_rate_hz == 16_000
    assert (model.metadata.frame_samples, model.metadata.hop_samples) == (640, 320)


def test_metadata_agrees_with_the_onnx_package():
    onnx = pytest.importorskip("onnx")
    model = find_model(DEFAULT_MODEL)
    properties = {entry.key: entry.value for entry in onnx.load(model.path).metadata_props}
    assert type(model.metadata).from_properties(properties) == model.metadata
    assert properties == model.metadata.to_properties()


def written_by_0_1_0(metadata: ModelMetadata) -> dict[str, str]:
    """Return the properties under the names of that version."""
    properties = metadata.to_properties()
    properties["frcrn_accel.window_samples"] = properties.pop("frcrn_accel.frame_samples")
    if properties.pop("frcrn_accel.is_step", None):
        properties["frcrn_accel.timeline"] = "stream"
    return properties


@pytest.mark.parametrize("variant", [None, "dynamic", "static", "openvino-int8", "step"])
@pytest.mark.parametrize("name", ["frcrn-small", "frcrn-small-stream"])
def test_files_of_0_1_0_are_read(name, variant):
    model = find_model(name)
    metadata = model.metadata if variant is None else packaged_variant(model, variant).metadata
    assert (metadata.frame_samples, metadata.window_samples) == (640, 640)
    assert metadata.is_step == (variant == "step")
    assert metadata.method == (variant if variant not in (None, "step") else "fp32")
    assert ModelMetadata.from_properties(written_by_0_1_0(metadata)) == metadata


def test_a_damaged_packaged_model(tmp_path, monkeypatch):
    content = bytearray(find_model(DEFAULT_MODEL).path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = tmp_path / f"{DEFAULT_MODEL}.onnx"
    damaged.write_bytes(content)
    monkeypatch.setattr("frcrn_accel.models.catalog.KnownModel.packaged_path", damaged)
    with pytest.raises(ModelError, match="is damaged: reinstall"):
        find_model(DEFAULT_MODEL)


@pytest.mark.skipif(os.name == "nt", reason="Windows guesses the folders of other users")
def test_a_path_of_an_unknown_user():
    with pytest.raises(ModelError, match=r"'~no-such-user/mine\.onnx' cannot be found: "):
        find_model("~no-such-user/mine.onnx")


def test_a_path_is_a_model_too(tmp_path):
    path = tmp_path / "my model.onnx"
    shutil.copy(find_model(DEFAULT_MODEL).path, path)
    assert find_model(path).metadata == find_model(DEFAULT_MODEL).metadata
    assert find_model(str(path)).path == path


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "pytorch_model.bin", "a.ckpt"])
def test_a_checkpoint_is_not_a_model_file(name):
    with pytest.raises(ModelError, match=f"is a checkpoint, not a model file: run 'frcrn-accel export {name}"):
        find_model(name)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x00" * 100, b"\xff" * 100, b"\x72\x05\x0a\x7fabc", b"\x08\x07", b"\x3a\xff\xff\x03"]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx' is not a"):
        ModelFile.open(path)


def test_every_truncation_of_the_metadata_is_refused_or_complete(tmp_path):
    content = find_model(DEFAULT_MODEL).path.read_bytes()
    path = tmp_path / "model.onnx"
    complete = 0
    for cut in range(len(content) - 500, len(content)):
        path.write_bytes(content[:cut])
        try:
            complete += ModelFile.open(path).metadata == find_model(DEFAULT_MODEL).metadata
        except ModelError:
            continue
    assert complete < 100


def test_a_file_that_says_nothing_of_quantization_is_fp32():
    metadata = find_model(DEFAULT_MODEL).metadata
    assert (metadata.method, metadata.source_sha256, metadata.calibration_sha256) == ("fp32", "", "")
    assert (metadata.gate, metadata.kept_float) == ("", ())
    assert len(metadata.to_properties()) == 8


@pytest.mark.parametrize("kept_float", [(), ("unet.fsmn",), ("unet.encoders.0", "unet.fsmn")])
def test_metadata_of_a_quantized_model_round_trip(kept_float):
    metadata = dataclasses.replace(
        find_model(DEFAULT_MODEL).metadata,
        method="static",
        source_sha256="ab" * 32,
        calibration_sha256="cd" * 32,
        gate="passed",
        kept_float=kept_float,
    )
    assert type(metadata).from_properties(metadata.to_properties()) == metadata


def test_metadata_round_trip():
    metadata = find_model(DEFAULT_MODEL).metadata
    assert type(metadata).from_properties(metadata.to_properties()) == metadata
    for missing in metadata.to_properties():
        properties = metadata.to_properties()
        del properties[missing]
        with pytest.raises(ModelError, match=missing):
            type(metadata).from_properties(properties)
    for wrong in ("many", "0", "-1", "", "\u0661\u0662"):
        with pytest.raises(ModelError, match=f"hop_samples' is not a positive number: '{wrong}'"):
            type(metadata).from_properties({**metadata.to_properties(), "frcrn_accel.hop_samples": wrong})
