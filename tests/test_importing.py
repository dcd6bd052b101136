from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from checkpoints import save_checkpoint, state_of
from frcrn_accel import (
    BackendUnavailable,
    Denoiser,
    ExportError,
    MissingExtraError,
    ModelError,
    OutputExistsError,
    QualityError,
)
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import (
    DEFAULT_MODEL,
    LIVE_MODEL,
    ModelFile,
    cached_files,
    find_imported,
    find_model,
    imported_names,
    keep_imported,
    known_models,
    packaged_files,
    ready_variant,
)
from frcrn_accel.network.topology import Config
from frcrn_accel.prepare import importing
from frcrn_accel.prepare.importing import import_model
from frcrn_accel.prepare.inventory import model_statuses
from frcrn_accel.quantize import METHODS, quantizer
from frcrn_accel.testing import random_weights

NAME = "frcrn-16k"


pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def no_variants(monkeypatch) -> None:
    """Import without quantizing: tests that are not about it need not wait."""
    monkeypatch.setattr(importing, "VARIANT_METHODS", ())


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """Eight channels, one U-Net, under the released keys, wrapped as after fine-tuning."""
    return saved(tmp_path / "mine.pt", seed=0)


def saved(path: Path, seed: int) -> Path:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    state = state_of(random_weights(Config(8, 1), seed))
    torch.save({"state_dict": {f"model.{key}": value for key, value in state.items()}}, path)
    return path


def known_as(monkeypatch, checkpoint: Path) -> None:
    """Make this the known checkpoint of `NAME`."""
    known = dataclasses.replace(known_models()[NAME], checkpoint_sha256=sha256_of(checkpoint))
    monkeypatch.setitem(known_models(), NAME, known)


def copy_of_the_packaged(path: Path) -> None:
    shutil.copyfile(find_model(DEFAULT_MODEL).path, path)


def files(folder: Path) -> list[str]:
    """Return the names of the model files; what engines compile from them is beside them."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".optimized")


@pytest.mark.usefixtures("no_variants")
class TestImport:
    def test_from_then_on_the_name_works(self, checkpoint, empty_cache, noisy):
        from frcrn_accel.export import export_model

        with pytest.raises(
            ModelError, match="unknown model 'mine': give one of frcrn-small, frcrn-small-stream, frcrn-16k or a path"
        ):
            Denoiser("mine")
        steps: list[tuple[str, int, int]] = []
        report = import_model(checkpoint, progress=lambda *step: steps.append(step))
        assert steps == [("export", 0, 1), ("export", 1, 1)]
        assert report.model == find_model("mine")
        assert 0 < report.difference < 1e-4
        assert report.model.metadata.channels == 8
        assert files(empty_cache) == [f"mine-imported-{sha256_of(report.model.path)[:16]}.onnx"]
        exported = checkpoint.with_suffix(".onnx")
        export_model(checkpoint, exported)
        audio = noisy[:16_000]
        with Denoiser("mine", backend="ort") as by_name, Denoiser(exported, backend="ort") as by_path:
            np.testing.assert_array_equal(by_name(audio, 16_000), by_path(audio, 16_000))
        with pytest.raises(
            ModelError, match="give one of frcrn-small, frcrn-small-stream, frcrn-16k, mine or a path"
        ):
            find_model("other")

    def test_the_known_file_gets_the_known_name(self, checkpoint, monkeypatch):
        with pytest.raises(ModelError, match=f"model '{NAME}' is not in this package: .* 'frcrn-accel models import"):
            find_model(NAME)
        known_as(monkeypatch, checkpoint)
        assert import_model(checkpoint).model.metadata.name == NAME
        assert find_model(NAME).metadata.channels == 8
        assert Denoiser(NAME, backend="ort").model.name == NAME

    def test_another_file_does_not_get_it(self, checkpoint, empty_cache):
        with pytest.raises(ModelError, match=f"is not the known checkpoint of '{NAME}'"):
            import_model(checkpoint, name=NAME)
        with pytest.raises(ModelError, match=f"is not the known checkpoint of '{NAME}': choose another name"):
            import_model(checkpoint.rename(checkpoint.with_stem(NAME)))
        assert not empty_cache.exists()

    def test_a_file_that_was_made_of_another_checkpoint_is_not_taken_for_it(self, checkpoint):
        keep_imported(NAME, copy_of_the_packaged)
        with pytest.raises(ModelError, match=f"was not made from the known checkpoint of '{NAME}': remove it"):
            find_model(NAME)

    def test_again_makes_nothing(self, checkpoint, empty_cache, monkeypatch):
        first = import_model(checkpoint)
        monkeypatch.setattr("frcrn_accel.export.export_model", None)
        assert import_model(checkpoint) == dataclasses.replace(first, difference=None)
        assert len(files(empty_cache)) == 1

    def test_another_model_under_the_name(self, checkpoint, empty_cache, tmp_path):
        first = import_model(checkpoint, name="ours").model
        other = saved(tmp_path / "other.pt", seed=1)
        with pytest.raises(
            OutputExistsError, match=f"another model was imported as 'ours', .* sha256 {sha256_of(checkpoint)}"
        ):
            import_model(other, name="ours")
        assert find_model("ours") == first
        second = import_model(other, name="ours", overwrite=True).model
        assert second.metadata.checkpoint_sha256 == sha256_of(other)
        assert find_model("ours") == second
        assert files(empty_cache) == [second.path.name]

    def test_a_new_version_of_the_library_keeps_it_and_makes_it_anew(self, checkpoint, empty_cache, monkeypatch):
        first = import_model(checkpoint).model
        for module in ("export", "prepare.importing", "models.cache"):
            monkeypatch.setattr(f"frcrn_accel.{module}.__version__", "9.9.9")
        assert find_model("mine") == first
        second = import_model(checkpoint)
        assert second.difference is not None
        assert find_model("mine").metadata.library_version == "9.9.9"
        assert files(empty_cache) == [second.model.path.name]

    def test_a_damaged_one_is_an_error_until_it_is_imported_again(self, checkpoint, empty_cache):
        path = import_model(checkpoint).model.path
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + b"x" + whole[-19:])
        with pytest.raises(
            ModelError, match="is damaged: run 'frcrn-accel models import CHECKPOINT --name mine' again"
        ):
            find_model("mine")
        assert [file.problem for file in cached_files() if file.problem] == ["damaged: import it again"]
        assert path.exists()
        assert import_model(checkpoint).model.path.read_bytes() == whole
        assert [file.problem for file in cached_files()] == [None, None]  # with what ONNX Runtime compiled

    def test_a_file_of_no_network(self, tmp_path, empty_cache):
        (tmp_path / "a.pt").write_bytes(b"text")
        with pytest.raises(ModelError, match="is not a file of plain tensors"):
            import_model(tmp_path / "a.pt")
        assert files(empty_cache) == []
        with pytest.raises(ModelError, match=r"none\.pt' cannot be read: No such file"):
            import_model(tmp_path / "none.pt")

    def test_a_network_that_outputs_no_audio(self, tmp_path, empty_cache):
        weights = random_weights(Config(8, 1))
        weights["unet.encoders.3.bn.bn_re.running_var"] -= 100
        with pytest.raises(ExportError, match="output on noise is not finite, or all zeros"):
            import_model(save_checkpoint(weights, tmp_path / "ruined.pt"))
        assert files(empty_cache) == []

    @pytest.mark.parametrize("name", ["", "a/b", "../a", "v1.2", "-a", "a b", "ä", "a" * 65])
    def test_a_name_that_could_be_taken_for_a_file(self, checkpoint, empty_cache, name):
        with pytest.raises(ModelError, match=r"^invalid model name '.*': use 1 to 64 letters, digits, '-' or '_'"):
            import_model(checkpoint, name=name)
        assert not empty_cache.exists()

    def test_the_packaged_model_is_not_imported(self, checkpoint, monkeypatch):
        known = dataclasses.replace(known_models()[DEFAULT_MODEL], checkpoint_sha256=sha256_of(checkpoint))
        monkeypatch.setitem(known_models(), DEFAULT_MODEL, known)
        with pytest.raises(ModelError, match="is in the package: it does not need to be imported"):
            import_model(checkpoint)

    def test_a_cache_that_cannot_be_written(self, checkpoint, empty_cache):
        empty_cache.write_text("a file in the way")
        with pytest.raises(ModelError, match=r"model 'mine' cannot be stored in .*: File exists"):
            import_model(checkpoint)

    def test_without_torch(self, checkpoint, empty_cache, monkeypatch):
        monkeypatch.setitem(sys.modules, "torch", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'frcrn-accel\[export\]'"):
            import_model(checkpoint)
        assert files(empty_cache) == []


@pytest.mark.usefixtures("no_eval")
class TestVariants:
    def test_backends_find_them_without_calibration_audio(self, checkpoint, short_audio, noisy, monkeypatch):
        monkeypatch.setattr(importing, "VARIANT_METHODS", ("dynamic", "static"))
        monkeypatch.setattr(quantizer, "GATE_AUDIO", short_audio)
        monkeypatch.setattr("frcrn_accel.quantize.CALIBRATION_AUDIO", short_audio)
        skip_without(METHODS["dynamic"].backend())
        steps: list[str] = []
        report = import_model(checkpoint, progress=lambda what, done, total: steps.append(what))
        assert {"export", "dynamic: build", "static: calibrate", "static: build"} <= set(steps)
        for variant in report.variants:
            assert variant.file.metadata.gate == "passed"
            assert ready_variant(report.model, variant.method) == variant.file
        monkeypatch.setattr("frcrn_accel.quantize.quantize_model", None)
        for backend in ("ort-dynamic-int8", "ort-static-int8"):
            with Denoiser("mine", backend=backend) as denoiser:
                assert np.isfinite(denoiser(noisy[:16_000], 16_000)).all()
        assert import_model(checkpoint).variants == report.variants
        (status,) = (status for status in model_statuses() if status.name == "mine")
        assert status.variants == ("dynamic", "static")

    def test_refused_ones_are_left_out(self, checkpoint, empty_cache, monkeypatch):
        def refuse(*arguments: object, **options: object) -> None:
            raise QualityError("too far", None)

        monkeypatch.setattr(importing, "VARIANT_METHODS", ("dynamic",))
        monkeypatch.setattr("frcrn_accel.quantize.quantize_model", refuse)
        skip_without(METHODS["dynamic"].backend())
        report = import_model(checkpoint)
        assert report.variants == (importing.ImportedVariant("dynamic", None, refusal="too far"),)
        assert files(empty_cache) == [report.model.path.name]
        assert find_model("mine") == report.model

    def test_none_is_made_for_an_engine_that_is_not_here(self, checkpoint, empty_cache, monkeypatch):
        class Absent(METHODS["static"].backend):
            @classmethod
            def check(cls) -> None:
                raise BackendUnavailable("absent", "it is not installed", "install it")

        monkeypatch.setattr(importing, "VARIANT_METHODS", ("static",))
        monkeypatch.setitem(METHODS, "static", dataclasses.replace(METHODS["static"], backend=Absent))
        (variant,) = import_model(checkpoint).variants
        assert variant.missing == "backend 'absent' cannot run here: it is not installed; install it"
        assert len(files(empty_cache)) == 1


def skip_without(backend) -> None:
    try:
        backend.check()
    except BackendUnavailable as error:
        pytest.skip(str(error))


class TestLookup:
    def test_a_name_is_not_part_of_a_longer_one(self):
        keep_imported("a-imported", copy_of_the_packaged)
        assert find_imported("a") is None
        keep_imported("a", copy_of_the_packaged)
        assert imported_names() == ["a", "a-imported"]
        assert find_imported("a").path != find_imported("a-imported").path

    def test_a_name_comes_before_a_file(self, tmp_path, monkeypatch):
        kept = keep_imported("mine", copy_of_the_packaged)
        monkeypatch.chdir(tmp_path)
        copy_of_the_packaged(tmp_path / "mine")
        assert find_model("mine") == kept
        assert find_model("./mine").path == Path("mine")
        assert find_model(Path("mine")).path == Path("mine")

    def test_while_one_takes_the_place_of_another_the_newer_counts(self, empty_cache):
        older = keep_imported("mine", copy_of_the_packaged).path
        newer = empty_cache / f"mine-imported-{'0' * 16}.onnx"
        newer.write_bytes(b"")
        os.utime(older, (1, 1))
        with pytest.raises(ModelError, match=f"{newer.name}' is damaged"):
            find_imported("mine")
        os.utime(newer, (0, 0))
        assert find_imported("mine") == ModelFile.open(older)

    def test_one_that_cannot_be_read(self, empty_cache):
        path = keep_imported("mine", copy_of_the_packaged).path
        path.unlink()
        path.mkdir(mode=0o755)
        with pytest.raises(ModelError, match="the imported model 'mine' cannot be read: "):
            find_imported("mine")


class TestFiles:
    def test_of_the_package(self):
        found = packaged_files()
        assert [file.path.name for file in found] == [
            "frcrn-small.onnx",
            "frcrn-small.dynamic.onnx",
            "frcrn-small.static.onnx",
            "frcrn-small.openvino-int8.onnx",
            "frcrn-small.step.onnx",
            "frcrn-small-stream.onnx",
            "frcrn-small-stream.dynamic.onnx",
            "frcrn-small-stream.static.onnx",
            "frcrn-small-stream.openvino-int8.onnx",
            "frcrn-small-stream.step.onnx",
        ]
        assert [file.problem for file in found] == [None] * 10
        assert all(file.bytes == file.path.stat().st_size for file in found)

    def test_one_of_the_package_is_missing(self, monkeypatch, tmp_path):
        monkeypatch.setattr("frcrn_accel.models.catalog.KnownModel.packaged_path", tmp_path / "none.onnx")
        first, *others = packaged_files()
        others = [file for file in others if file.path != first.path]  # another model's
        assert (first.bytes, first.problem) == (
            0,
            f"model file {str(first.path)!r} cannot be read: No such file or directory",
        )
        assert [file.problem for file in others] == [None] * 8

    def test_of_the_cache(self, empty_cache):
        assert cached_files() == []
        kept = keep_imported("mine", copy_of_the_packaged)
        cut = empty_cache / f"some-{'0' * 16}-{'1' * 16}.onnx"
        cut.write_bytes(b"half of it")
        (empty_cache / "notes.txt").write_text("not of this library")
        (empty_cache / ".some-1234.onnx").write_bytes(b"being written")
        assert [(file.path, file.problem) for file in cached_files()] == [
            (kept.path, None),
            (cut, "damaged: it is made again when it is needed"),
        ]

    def test_what_is_said_of_models(self):
        small, stream, large = model_statuses()
        assert (small.name, small.place, small.problem) == (DEFAULT_MODEL, "packaged", None)
        assert small.variants == ("dynamic", "static", "openvino-int8")
        assert (stream.name, stream.place, stream.problem) == (LIVE_MODEL, "packaged", None)
        assert stream.variants == small.variants
        assert (large.name, large.place, large.path, large.variants) == (NAME, "absent", None, ())
        keep_imported("mine", copy_of_the_packaged)
        *_, mine = model_statuses()
        assert (mine.name, mine.place, mine.source) == ("mine", "imported", "imported by the user")
        assert mine.description == "32 complex channels, 2 U-Net(s)"
        assert mine.checkpoint_sha256 == known_models()[DEFAULT_MODEL].checkpoint_sha256
