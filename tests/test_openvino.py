from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, Denoiser, EngineError, ModelError, ModelFile, QuantizeError
from frcrn_accel.backends import openvino as module
from frcrn_accel.backends.openvino import OpenVinoBackend
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.cpu import available_cpus
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import CACHE_DIR_VARIABLE, find_model, packaged_variant
from frcrn_accel.network.topology import Config
from frcrn_accel.prepare import prepare
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quantize import METHODS, QuantizeReport
from frcrn_accel.testing import BackendConformance, random_weights

pytest.importorskip("openvino")
onnx = pytest.importorskip("onnx")

onnxruntime = pytest.importorskip("onnxruntime")
from frcrn_accel.models import read_weights  # noqa: E402
from frcrn_accel.quantize import openvino_int8  # noqa: E402

# OpenVINO takes no more threads than the process has CPUs, which of several test processes have one each.
THREADS = min(2, available_cpus())
PACKAGED = Config(find_model("frcrn-small").metadata.channels, find_model("frcrn-small").metadata.unets)


@pytest.fixture(scope="module")
def quantized(quantized_once) -> QuantizeReport:
    """The packaged model, quantized with the packaged audio."""
    return quantized_once("openvino-int8")


@pytest.fixture(scope="module")
def int8(quantized) -> ModelFile:
    return find_model(quantized.output)


def at_model_level(audio: np.ndarray) -> np.ndarray:
    """Return audio as `(1, samples)` at -25 dBFS."""
    return (audio * 10 ** (-25 / 20) / np.sqrt(np.mean(audio**2)))[None].astype(np.float32)


def skip_without_bf16() -> None:
    if not module.has_bf16():
        pytest.skip("this CPU does not compute in bfloat16")


class TestFp32(BackendConformance):
    backend = OpenVinoBackend("fp32")
    reference = "ort"


class TestBf16(BackendConformance):
    backend = OpenVinoBackend("bf16")
    reference = "ort"

    def test_it_agrees_with_the_reference(self, session, model):
        """Nearly all of the noise is removed, so rounding is measured relative to the input. For speech see below."""
        audio = (0.05 * np.random.default_rng(0).standard_normal((2, 25_920))).astype(np.float32)
        expected = OrtBackend().load(model, threads=THREADS).run(audio)
        assert np.abs(session.run(audio) - expected).max() <= 0.005 * np.abs(audio).max()

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def needs_bf16(cls):
        skip_without_bf16()


class TestInt8(BackendConformance):
    backend = OpenVinoBackend("int8")  # numbers: on speech, below

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, int8) -> ModelFile:
        return int8


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 90), ("bf16", 42), ("int8", 30)])
def test_speech_is_what_fp32_makes_of_it(int8, noisy, denoised, precision, least_db):
    if precision == "bf16":
        skip_without_bf16()
    model = int8.path if precision == "int8" else "frcrn-small"
    with Denoiser(model, backend="openvino", precision=precision) as denoiser:
        assert denoiser.precision == precision
        assert denoiser.device.startswith(f"CPU, {precision}, ")
        assert si_sdr_db(denoised, denoiser(noisy, 16_000)) > least_db


@pytest.mark.parametrize("name", ["quantized here", "packaged"])
def test_integers_give_what_is_in_the_file(int8, noisy, name):
    """Against ONNX Runtime, which computes the same file in float: kernels of some CPUs have been wrong."""
    file = int8 if name == "quantized here" else packaged_variant(find_model("frcrn-small"), "openvino-int8")
    audio = at_model_level(noisy)
    session = onnxruntime.InferenceSession(file.path, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {session.get_inputs()[0].name: audio})
    assert si_sdr_db(expected[0], OpenVinoBackend("int8").load(file, threads=THREADS).run(audio)[0]) > 40


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_number_of_frames_returns(int8, precision):
    """With the form that the file holds, OpenVINO hangs in bfloat16 for 27, 31, 35, ... frames."""
    if precision == "bf16":
        skip_without_bf16()
    code = (
        "import json, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from frcrn_accel.backends.openvino import OpenVinoBackend\n"
        "from frcrn_accel.cpu import available_cpus\n"
        "from frcrn_accel.models import ModelFile\n"
        "from frcrn_accel.prepare import prepare\n"
        "backend = OpenVinoBackend(sys.argv[1])\n"
        "session = backend.load(prepare(ModelFile.open(Path(sys.argv[2])), backend), min(2, available_cpus()))\n"
        "rng = np.random.default_rng(0)\n"
        "for batch, frames in json.loads(sys.argv[3]):\n"
        "    audio = rng.standard_normal((batch, 320 * (frames + 1))).astype(np.float32)\n"
        "    assert np.isfinite(session.run(audio)).all()\n"
        "print('done')"
    )
    model = int8 if precision == "int8" else find_model("frcrn-small")
    numbers = range(1, 61) if precision == "bf16" else (*range(1, 10), 27, 31, 35, 60)
    shapes = [*((1, number) for number in (*numbers, 199)), (3, 49), (4, 27)]
    command = [sys.executable, "-c", code, precision, str(model.path), json.dumps(shapes)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout == "done\n"


def test_the_default_is_bf16_where_the_cpu_has_it(monkeypatch):
    monkeypatch.setattr(module, "has_bf16", lambda: True)
    assert OpenVinoBackend().precision == "bf16"
    monkeypatch.setattr(module, "has_bf16", lambda: False)
    assert OpenVinoBackend().precision == "fp32"
    with pytest.raises(BackendUnavailable, match="does not compute in bfloat16; use precision 'fp32'"):
        OpenVinoBackend("bf16").recipe(find_model("frcrn-small"))


def test_the_form_for_bf16_is_made_once(tmp_path, monkeypatch):
    skip_without_bf16()
    monkeypatch.setenv(CACHE_DIR_VARIABLE, str(tmp_path))
    model = find_model("frcrn-small")
    prepare(model, OpenVinoBackend("bf16"))
    (path,) = tmp_path.iterdir()
    assert ModelFile.open(path).metadata == dataclasses.replace(model.metadata, form="direct")
    made = path.stat().st_mtime_ns
    prepare(model, OpenVinoBackend("bf16"))
    assert [(found, found.stat().st_mtime_ns) for found in tmp_path.iterdir()] == [(path, made)]


def test_the_usual_form_is_refused_in_bf16():
    """It hangs there, so it must not run even where `prepare` is left out."""
    skip_without_bf16()
    with pytest.raises(ModelError, match=r"is not in the form for bf16: load the file of `prepare\.prepare`"):
        OpenVinoBackend("bf16").load(find_model("frcrn-small"), threads=1)
    with pytest.raises(ModelError, match=r"is not quantized: load the file of `prepare\.prepare`"):
        OpenVinoBackend("int8").load(find_model("frcrn-small"), threads=1)


def test_int8_without_bf16_computes_the_rest_in_fp32(monkeypatch, int8, noisy):
    audio = at_model_level(noisy[:32_000])
    default = OpenVinoBackend("int8").load(int8, threads=1).run(audio)
    monkeypatch.setattr(module, "has_bf16", lambda: False)
    session = OpenVinoBackend("int8").load(int8, threads=1)
    assert session.compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert si_sdr_db(session.run(audio)[0], default[0]) > 30


def test_the_precision_of_an_int8_file_is_int8(int8):
    assert OpenVinoBackend().precision_for(int8) == "int8"
    assert OpenVinoBackend("fp32").precision_for(find_model("frcrn-small")) == "fp32"
    with Denoiser(int8.path, backend="openvino") as denoiser:
        assert denoiser.precision == "int8"
        assert denoiser.device.startswith("CPU, int8, ")
    with pytest.raises(
        ModelError, match=r"int8\.onnx' is INT8 and cannot run in 'fp32': leave the precision out, or"
    ):
        OpenVinoBackend("fp32").load(int8, threads=1)


@pytest.mark.parametrize("method", ["static", "new"])
def test_a_file_that_is_quantized_for_another_backend(method):
    model = find_model("frcrn-small")
    other = ModelFile(model.path, dataclasses.replace(model.metadata, method=method))
    with pytest.raises(ModelError, match=rf"method '{method}', and backend 'openvino' does not run such files"):
        OpenVinoBackend().recipe(other)
    with pytest.raises(ModelError, match="does not run such files"):
        OpenVinoBackend().load(other, threads=1)


def test_settings_that_openvino_does_not_take_are_an_error(monkeypatch):
    session = OpenVinoBackend("fp32").load(find_model("frcrn-small"), threads=1)
    module.check_settings(session.compiled, "f32", 1)
    with pytest.raises(
        BackendUnavailable, match=r"it would run with .*'f32', 'threads': 1}, not .*'bf16', 'threads': 2}"
    ):
        module.check_settings(session.compiled, "bf16", 2)
    with pytest.raises(BackendUnavailable, match=r"this process may use 1; ask for at most 1 thread$"):
        module.check_settings(session.compiled, "f32", 2)


@pytest.mark.skipif(available_cpus() < 2, reason="needs two CPUs")
def test_runs_at_once_give_the_same(noisy):
    model = find_model("frcrn-small")
    batches = [noisy[start : start + 32_000][None] for start in (0, 16_000, 32_000)]
    found = []
    for runs in (1, 2):
        backend = OpenVinoBackend("fp32")
        backend.concurrent_runs = runs
        session = backend.load(model, 1)
        assert session.device == "CPU, fp32, 1 thread"
        with ThreadPoolExecutor(runs) as pool:
            found.append(list(pool.map(session.run, batches)))
        session.close()
    np.testing.assert_array_equal(found[0], found[1])


def test_a_shape_it_cannot_run():
    session = OpenVinoBackend("fp32").load(find_model("frcrn-small"), threads=1)
    with pytest.raises(EngineError, match=r"OpenVINO gave \(0, 0\) for a batch of \(1, 100\)"):
        session.run(np.zeros((1, 100), np.float32))
    with pytest.raises(EngineError, match=r"OpenVINO failed on a batch of \(1, 1, 640\): (?!Exception from)."):
        session.run(np.zeros((1, 1, 640), np.float32))


class TestQuantized:
    def test_it_passes_the_gate(self, quantized, int8):
        source = find_model("frcrn-small")
        assert quantized.verdict == "passed"
        assert quantized.gate.measures[0].value > 38
        assert quantized.gate.candidate_device.startswith("openvino: CPU, int8, ")
        assert quantized.size_ratio < 0.5
        assert int8.metadata == dataclasses.replace(
            source.metadata,
            library_version=int8.metadata.library_version,
            method="openvino-int8",
            source_sha256=sha256_of(source.path),
            calibration_sha256=quantized.calibration_sha256,
            gate="passed",
        )

    def test_openvino_computes_it_in_int8(self, int8):
        session = OpenVinoBackend().load(int8, threads=1)
        kinds = [
            (info["layerType"].astype(str), info["primitiveType"].astype(str).rpartition("_")[2].lower())
            for info in (node.get_rt_info() for node in session.compiled.get_runtime_model().get_ops())
        ]
        unets = len(PACKAGED.unet_names)
        assert kinds.count(("Convolution", "i8")) == 5 * unets
        assert kinds.count(("Deconvolution", "i8")) == 5 * unets

    def test_weights_are_stored_once_as_integers(self, int8):
        released = read_weights(find_model("frcrn-small").path)
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(int8.path).graph.initializer}
        assert set(released) <= set(stored)
        for layer in METHODS["openvino-int8"].groups(PACKAGED):
            is_encoder = "encoders" in layer
            name = f"{layer}.{'conv.conv' if is_encoder else 'transconv.tconv'}"
            step = stored[f"{name}.scale"].reshape((-1, 1, 1, 1) if is_encoder else (1, -1, 1, 1))
            for part in ("re", "im"):
                found, expected = stored[f"{name}_{part}.weight"], released[f"{name}_{part}.weight"]
                assert (found.dtype, np.abs(found).max()) == (np.int8, 127)
                assert np.max(np.abs(found * step - expected) / step) <= 0.5001
        large = [name for name, tensor in stored.items() if tensor.size > 10_000]
        assert all(stored[name].dtype == np.int8 for name in large)

    def test_layers_kept_in_float(self):
        config = Config(16, 1)
        weights = random_weights(config)
        audio = (0.056 * np.random.default_rng(0).standard_normal((1, 32_000))).astype(np.float32)
        build = METHODS["openvino-int8"].prepare(weights, [audio])
        metadata = dataclasses.replace(find_model("frcrn-small").metadata, channels=16, unets=1)
        groups = METHODS["openvino-int8"].groups(config)
        assert groups == (
            *(f"unet.encoders.{i}" for i in range(2, 7)),
            *(f"unet.decoders.{i}" for i in (0, 2, 3, 4, 5)),
        )
        for kept in ((), groups[:1], groups):
            graph = build(weights, metadata, frozenset(kept)).graph
            # The input and the weight of each layer.
            assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 2 * (len(groups) - len(kept))
            stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
            for layer in kept:
                names = [name for name in stored if name.startswith(layer) and name in weights]
                assert any(stored[name].ndim == 4 for name in names)
                for name in names:
                    np.testing.assert_array_equal(stored[name], weights[name])

    def test_a_channel_without_weights(self, tmp_path):
        config = Config(16, 1)
        weights = {key: value.copy() for key, value in random_weights(config).items()}
        for part in ("re", "im"):
            weights[f"unet.encoders.2.conv.conv_{part}.weight"][3] = 0
        weights["unet.decoders.2.bn.bn_re.weight"][2] = 0
        weights["unet.decoders.2.bn.bn_re.weight"][3] *= -1
        audio = (0.056 * np.random.default_rng(0).standard_normal((1, 32_000))).astype(np.float32)
        metadata = dataclasses.replace(find_model("frcrn-small").metadata, channels=16, unets=1)
        build = METHODS["openvino-int8"].prepare(weights, [audio])
        outputs = []
        for kept in ((), METHODS["openvino-int8"].groups(config)):
            path = tmp_path / f"{len(kept)}.onnx"
            method = dataclasses.replace(metadata, method="openvino-int8", source_sha256="0" * 64)
            path.write_bytes(build(weights, method, frozenset(kept)).SerializeToString())
            outputs.append(OpenVinoBackend().load(ModelFile.open(path), threads=1).run(audio)[0])
        assert si_sdr_db(outputs[1], outputs[0]) > 20


class TestCalibration:
    def test_limits_are_the_quantile_of_the_magnitudes(self, noisy):
        weights = read_weights(find_model("frcrn-small").path)
        clip = at_model_level(noisy[:48_000])
        found = {q: openvino_int8.calibrate(weights, [clip], quantile=q) for q in (0.5, 0.9999, 1.0)}
        assert tuple(found[1.0]) == METHODS["openvino-int8"].groups(PACKAGED)
        for layer in found[1.0]:
            assert found[0.5][layer] < found[0.9999][layer] <= found[1.0][layer]
        # Against numpy, on the tensor itself.
        probe = openvino_int8.InputProbe(weights)
        model = probe.build("probe", "", {})
        name = probe.inputs["unet.decoders.3"]
        model.graph.output.append(onnx.ValueInfoProto(name=name))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        magnitudes = np.abs(session.run([name], {"audio": clip})[0])
        for q, limits in found.items():
            assert limits["unet.decoders.3"] == pytest.approx(np.quantile(magnitudes, q), rel=0.02)

    def test_long_clips_are_seen_in_pieces(self):
        weights = random_weights(Config(16, 1))
        rng = np.random.default_rng(0)
        clip = (0.056 * rng.standard_normal((1, 96_000))).astype(np.float32)
        whole = openvino_int8.calibrate(weights, [clip])
        assert whole == openvino_int8.calibrate(weights, [clip[:, :48_000], clip[:, 48_000:]])

    @pytest.mark.parametrize("clips", [[], [np.zeros((1, 3200), np.float32)]])
    def test_silence_is_no_calibration(self, clips):
        with pytest.raises(QuantizeError, match="the calibration audio is silent"):
            openvino_int8.calibrate(random_weights(Config(16, 1)), clips)


def test_a_signal_after_models_were_freed_ends_nothing():
    """In a process of its own: freed in the order in which they were loaded, two models made a signal end it."""
    code = (
        "import signal; from frcrn_accel import Denoiser\n"
        "denoisers = [Denoiser(backend='openvino', threads=1) for _ in range(2)]\n"
        "for denoiser in denoisers: denoiser.close()\n"
        "signal.signal(signal.SIGINT, lambda *_: print('heard'))\n"
        "signal.raise_signal(signal.SIGINT)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "heard\n")
