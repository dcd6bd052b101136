"""The INT8 backends of ONNX Runtime, and where their files come from."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import sys
from functools import partial

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from conftest import without_eval
from frcrn_accel import BackendUnavailable, Denoiser, ModelError
from frcrn_accel.backends import backend_statuses, ort, resolve_backend
from frcrn_accel.backends.ort import OrtBackend, OrtDynamicInt8Backend, OrtStaticInt8Backend
from frcrn_accel.models import (
    DEFAULT_MODEL,
    ModelFile,
    find_model,
    known_models,
    ready_variant,
)
from frcrn_accel.network.topology import FRAME_SAMPLES, HOP_SAMPLES, stft_window
from frcrn_accel.prepare import prepare
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quantize import quantizer
from frcrn_accel.testing import BackendConformance

pytestmark = pytest.mark.usefixtures("empty_cache")


class Conformance(BackendConformance):
    @pytest.fixture(autouse=True)
    def empty_cache(self) -> None:
        """Use the cache of all tests: other files use the same steps of streams, and making one takes seconds."""


class TestDynamic(Conformance):
    backend = OrtDynamicInt8Backend


class TestStatic(Conformance):
    backend = OrtStaticInt8Backend


@pytest.fixture
def short_gate(short_audio, no_eval, monkeypatch):
    """Gate on two short clips by SI-SDR: these tests are about files, not about measures."""
    monkeypatch.setattr(quantizer, "GATE_AUDIO", short_audio)
    return short_audio


@pytest.fixture
def copied(tmp_path) -> ModelFile:
    """The packaged model in a place of its own, where the package has no variants of it."""
    return ModelFile.open(shutil.copy(find_model(DEFAULT_MODEL).path, tmp_path / "copied.onnx"))


@pytest.mark.parametrize("backend", ["ort-dynamic-int8", "ort-static-int8"])
def test_speech_is_what_fp32_makes_of_it(noisy, denoised, backend):
    assert si_sdr_db(denoised, Denoiser(backend=backend)(noisy, 16_000)) > 33


@pytest.mark.parametrize("backend", [OrtDynamicInt8Backend, OrtStaticInt8Backend])
def test_every_number_of_frames_returns_and_is_close(noisy, backend):
    model = find_model(DEFAULT_MODEL)
    session, reference = (one.load(prepare(model, one), 2) for one in (backend(), OrtBackend()))
    for frames in (*range(1, 10), 31, 32, 199):
        window = noisy[None, 16_000 : 16_000 + 640 + 320 * (frames - 1)]
        expected, found = reference.run(window), session.run(window)
        assert found.shape == expected.shape
        # At the ends the model divides by what is left of a window, nearly nothing: `Denoiser` cuts them off.
        overlap = np.zeros(window.shape[1])
        for frame in range(frames):
            overlap[HOP_SAMPLES * frame :][:FRAME_SAMPLES] += stft_window() ** 2
        error = np.abs(found - expected) * overlap
        # Relative to the input: how much a model removes does not determine how exact it has to be.
        assert error.max() < 0.05 * np.abs(window).max()


@pytest.mark.usefixtures("no_eval")
class TestVariants:
    def test_the_packaged_model_has_its_own(self, empty_cache):
        known = known_models()[DEFAULT_MODEL]
        for method in ("dynamic", "static"):
            variant = prepare(find_model(DEFAULT_MODEL), resolve_backend(f"ort-{method}-int8"))
            assert variant.path == known.variant_path(method)
            assert variant.metadata.method == method
            assert variant.metadata.gate == "passed"
            assert variant.metadata.source_sha256 == known.model_sha256
        assert not empty_cache.exists()

    def test_a_damaged_packaged_one_is_an_error(self, tmp_path, monkeypatch):
        source = known_models()[DEFAULT_MODEL].variant_path("dynamic")
        damaged = tmp_path / "damaged.onnx"
        content = bytearray(source.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        model = find_model(DEFAULT_MODEL)
        monkeypatch.setattr("frcrn_accel.models.catalog.KnownModel.variant_path", lambda self, method: damaged)
        with pytest.raises(ModelError, match=r"damaged\.onnx' is damaged: reinstall"):
            prepare(model, OrtDynamicInt8Backend())

    def test_a_model_is_quantized_once(self, tiny, empty_cache, short_gate, caplog):
        pytest.importorskip("onnx")
        assert ready_variant(tiny, "dynamic") is None
        with caplog.at_level(logging.INFO, logger="frcrn_accel"):
            made = prepare(tiny, OrtDynamicInt8Backend())
        assert "quantizing tiny with method 'dynamic'; this is done once and can take minutes" in caplog.text
        assert made.path.parent == empty_cache
        assert made.metadata.gate == "passed"
        content = made.path.read_bytes()
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="frcrn_accel"):
            assert prepare(tiny, OrtDynamicInt8Backend()) == made
        assert ready_variant(tiny, "dynamic") == made
        assert caplog.text == ""
        # Cut short, it is made again, and is what it was.
        made.path.write_bytes(content[: len(content) // 2])
        again = prepare(tiny, OrtDynamicInt8Backend())
        assert again.path.read_bytes() == content

    def test_two_processes_make_it_at_once(self, tiny, empty_cache, short_audio):
        pytest.importorskip("onnx")
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool:
            paths = pool.map(partial(_quantize, short_audio), [tiny.path, tiny.path])
        assert paths[0] == paths[1]
        assert [path.name for path in empty_cache.glob("*.onnx")] == [paths[0].name]
        assert ModelFile.open(paths[0]).metadata.method == "dynamic"

    def test_static_without_calibration_says_how(self, tiny):
        pytest.importorskip("onnx")
        with pytest.raises(ModelError, match=r"not been calibrated for backend 'ort-static-int8': give a folder"):
            Denoiser(tiny.path, backend="ort-static-int8")

    def test_static_with_calibration(self, tiny, empty_cache, short_gate, noisy):
        pytest.importorskip("onnx")
        from frcrn_accel.quantize import CALIBRATION_AUDIO

        with Denoiser(tiny.path, backend="ort-static-int8", calibration=CALIBRATION_AUDIO) as denoiser:
            found = denoiser(noisy, 16_000)
        (path,) = empty_cache.glob("*.onnx")
        metadata = ModelFile.open(path).metadata
        assert metadata.method == "static"
        assert len(metadata.calibration_sha256) == 64
        assert si_sdr_db(Denoiser(tiny.path, backend="ort")(noisy, 16_000), found) > 33

    def test_packages_to_make_one_are_missing(self, copied, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(
            BackendUnavailable, match=r"not quantized yet, and packages are missing to make the file"
        ) as caught:
            Denoiser(copied.path, backend="ort-dynamic-int8")
        assert caught.value.remedy == "pip install 'frcrn-accel[quantize]'"

    def test_a_file_of_another_method(self):
        dynamic = known_models()[DEFAULT_MODEL].variant_path("dynamic")
        with pytest.raises(ModelError, match=r"method 'dynamic', and backend 'ort-static-int8' runs 'static'"):
            Denoiser(dynamic, backend="ort-static-int8")
        with pytest.raises(
            ModelError,
            match=r"and backend 'ort' does not run such files: choose the backend",
        ):
            Denoiser(dynamic, backend="ort")

    def test_calibration_where_it_is_of_no_use(self, tmp_path):
        for backend in ("ort", "ort-dynamic-int8"):
            with pytest.raises(ValueError, match=f"backend '{backend}' does not calibrate"):
                Denoiser(backend=backend, calibration=tmp_path)
        with pytest.raises(ValueError, match="is an instance already: pass calibration to its class"):
            Denoiser(backend=OrtStaticInt8Backend(), calibration=tmp_path)
        static = known_models()[DEFAULT_MODEL].variant_path("static")
        with pytest.raises(ModelError, match="is calibrated already"):
            Denoiser(static, backend="ort-static-int8", calibration=tmp_path)


class TestAuto:
    @pytest.mark.parametrize("method", ["dynamic", "static"])
    def test_a_quantized_file_gets_its_backend(self, method):
        model = ModelFile.open(known_models()[DEFAULT_MODEL].variant_path(method))
        assert resolve_backend("auto", model=model).name == f"ort-{method}-int8"
        others = [
            status for status in backend_statuses(model) if status.usable and status.name != f"ort-{method}-int8"
        ]
        assert all(status.priority < 0 for status in others)

    def test_a_small_model_stays_in_fp32(self):
        """Its operators are too small to gain from INT8 on ONNX Runtime."""
        ranks = {status.name: status.priority for status in backend_statuses(find_model(DEFAULT_MODEL))}
        assert 0 <= ranks["ort-dynamic-int8"] < ranks["ort"]
        assert 0 <= ranks["ort-static-int8"] < ranks["ort"]

    def test_it_makes_no_variants(self, copied, empty_cache):
        ranks = {status.name: status.priority for status in backend_statuses(copied)}
        assert ranks["ort-dynamic-int8"] < 0
        assert not empty_cache.exists()


def test_a_cpu_without_exact_products_is_refused(monkeypatch):
    monkeypatch.setattr(ort, "_products_are_exact", lambda: False)
    with pytest.raises(BackendUnavailable, match="no exact product of unsigned and signed 8-bit integers"):
        resolve_backend("ort-dynamic-int8")
    resolve_backend("ort")


def _quantize(gate_audio, path):
    with pytest.MonkeyPatch.context() as patch:
        without_eval(patch)
        patch.setattr(quantizer, "GATE_AUDIO", gate_audio)
        return prepare(ModelFile.open(path), OrtDynamicInt8Backend()).path
