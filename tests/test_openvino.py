from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from frcrn_accel import BackendUnavailable, Denoiser, EngineError, ModelError, ModelFile
from frcrn_accel.backends import openvino as module
from frcrn_accel.backends.openvino import OpenVinoBackend
from frcrn_accel.evaluate import si_sdr_db
from frcrn_accel.models import find_model
from frcrn_accel.testing import BackendConformance

pytest.importorskip("openvino")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory, noisy) -> ModelFile:
    """The packaged model, calibrated for INT8 on ten seconds."""
    from frcrn_accel.export import read_weights
    from frcrn_accel.quantize.openvino_int8 import calibrate, write_limits

    source = find_model("frcrn-small").path
    path = tmp_path_factory.mktemp("calibrated") / "calibrated.onnx"
    write_limits(source, path, calibrate(read_weights(source), [at_model_level(noisy)], threads=2))
    return ModelFile.open(path)


def at_model_level(audio: np.ndarray) -> np.ndarray:
    """`(1, samples)` at -25 dBFS."""
    return (audio * 10 ** (-25 / 20) / np.sqrt(np.mean(audio**2)))[None].astype(np.float32)


def skip_without_bf16() -> None:
    if not module._has_bf16():
        pytest.skip("this CPU does not compute in bfloat16")


class TestFp32(BackendConformance):
    backend = OpenVinoBackend("fp32")
    reference = "ort"


class TestBf16(BackendConformance):
    backend = OpenVinoBackend("bf16")
    reference = "ort"
    # On noise alone, which is nearly all taken away: what is left is small beside the rounding. For speech see below.
    tolerance = 0.15

    @pytest.fixture(autouse=True)
    def needs_bf16(self):
        skip_without_bf16()


class TestInt8(BackendConformance):
    backend = OpenVinoBackend("int8")  # numbers: on speech, below

    @pytest.fixture
    def model(self, calibrated) -> ModelFile:
        return calibrated


@pytest.mark.parametrize(("precision", "least_db"), [("fp32", 90), ("bf16", 42), ("int8", 30)])
def test_speech_is_what_fp32_makes_of_it(calibrated, noisy, precision, least_db):
    if precision == "bf16":
        skip_without_bf16()
    expected = Denoiser(calibrated.path, backend="ort")(noisy, 16_000)
    with Denoiser(calibrated.path, backend="openvino", precision=precision) as denoiser:
        assert denoiser.precision == precision
        assert denoiser.device.startswith(f"CPU, {precision}, ")
        assert si_sdr_db(expected, denoiser(noisy, 16_000)) > least_db


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_number_of_frames_returns(calibrated, precision):
    """With the form that the file holds, OpenVINO hangs in bfloat16 for 27, 31, 35, ... frames."""
    if precision == "bf16":
        skip_without_bf16()
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from frcrn_accel.backends.openvino import OpenVinoBackend\n"
        "from frcrn_accel.models import ModelFile\n"
        "session = OpenVinoBackend(sys.argv[1]).load(ModelFile.open(Path(sys.argv[2])), 2)\n"
        "rng = np.random.default_rng(0)\n"
        "for batch, frames in [*((1, n) for n in (*range(1, 61), 199)), (3, 49), (4, 27)]:\n"
        "    audio = rng.standard_normal((batch, 320 * (frames + 1))).astype(np.float32)\n"
        "    assert np.isfinite(session.run(audio)).all()\n"
        "print('done')"
    )
    command = [sys.executable, "-c", code, precision, str(calibrated.path)]
    assert subprocess.run(command, capture_output=True, text=True, timeout=100, check=True).stdout == "done\n"


def test_the_default_is_bf16_where_the_cpu_has_it(monkeypatch):
    monkeypatch.setattr(module, "_has_bf16", lambda: True)
    assert OpenVinoBackend().precision == "bf16"
    monkeypatch.setattr(module, "_has_bf16", lambda: False)
    assert OpenVinoBackend().precision == "fp32"
    with pytest.raises(BackendUnavailable, match="does not compute in bfloat16; use precision 'fp32'"):
        OpenVinoBackend("bf16").load(find_model("frcrn-small"), threads=1)


def test_int8_without_bf16_computes_the_rest_in_fp32(monkeypatch, calibrated, noisy):
    monkeypatch.setattr(module, "_has_bf16", lambda: False)
    session = OpenVinoBackend("int8").load(calibrated, threads=1)
    audio = at_model_level(noisy[:32_000])
    assert np.isfinite(session.run(audio)).all()


def test_settings_that_openvino_does_not_take_are_an_error(monkeypatch):
    session = OpenVinoBackend("fp32").load(find_model("frcrn-small"), threads=1)
    session._check_settings("f32", 1)
    with pytest.raises(
        BackendUnavailable, match=r"it would run with .*'f32', 'threads': 1}, not .*'bf16', 'threads': 2}"
    ):
        session._check_settings("bf16", 2)


def test_a_shape_it_cannot_run():
    session = OpenVinoBackend("fp32").load(find_model("frcrn-small"), threads=1)
    with pytest.raises(EngineError, match=r"OpenVINO gave \(0, 0\) for a batch of \(1, 100\)"):
        session.run(np.zeros((1, 100), np.float32))
    with pytest.raises(EngineError, match=r"OpenVINO failed on a batch of \(1, 1, 640\): (?!Exception from)."):
        session.run(np.zeros((1, 1, 640), np.float32))


class TestCalibration:
    def test_limits_are_the_quantile_of_the_magnitudes(self, noisy):
        from frcrn_accel.export import read_weights
        from frcrn_accel.quantize import openvino_int8

        weights = read_weights(find_model("frcrn-small").path)
        clip = at_model_level(noisy[:48_000])
        found = {q: openvino_int8.calibrate(weights, [clip], quantile=q) for q in (0.5, 0.9999, 1.0)}
        assert list(found[1.0]) == openvino_int8.int8_layers(openvino_int8._config(weights))
        for layer in found[1.0]:
            assert found[0.5][layer] < found[0.9999][layer] <= found[1.0][layer]
        # Against numpy, on the tensor itself.
        import onnx
        import onnxruntime

        from frcrn_accel.export.graph import GraphWriter

        probe = openvino_int8._Probe(GraphWriter(weights), openvino_int8._config(weights))
        model = probe.build("probe", "", {})
        name = probe.inputs["unet.decoders.3"]
        model.graph.output.append(onnx.ValueInfoProto(name=name))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        magnitudes = np.abs(session.run([name], {"audio": clip})[0])
        for q, limits in found.items():
            assert limits["unet.decoders.3"] == pytest.approx(np.quantile(magnitudes, q), rel=0.02)

    def test_the_limits_are_in_the_file_and_the_rest_is_as_before(self, calibrated):
        import onnx

        from frcrn_accel.quantize.openvino_int8 import PROPERTY, read_limits

        source = find_model("frcrn-small")
        assert calibrated.metadata == source.metadata
        before, after = onnx.load(source.path), onnx.load(calibrated.path)
        assert before.graph == after.graph
        limits = read_limits(calibrated.path)
        assert len(limits) == 11
        assert all(0.01 < limit < 1000 for limit in limits.values())
        assert PROPERTY in {entry.key for entry in after.metadata_props}

    def test_the_weights_of_the_quantized_graph_are_the_released_ones(self, calibrated, tmp_path):
        from frcrn_accel.export import read_weights
        from frcrn_accel.quantize.openvino_int8 import build_int8_graph, read_limits

        weights = read_weights(calibrated.path)
        graph = build_int8_graph(weights, read_limits(calibrated.path), "name", "0", {})
        (tmp_path / "int8.onnx").write_bytes(graph.SerializeToString())
        for key, value in read_weights(tmp_path / "int8.onnx").items():
            np.testing.assert_array_equal(value, weights[key])
        # 11 layers, input and weight each.
        assert sum(node.op_type == "QuantizeLinear" for node in graph.graph.node) == 22

    def test_a_model_that_is_not_calibrated(self):
        with pytest.raises(ModelError, match=r"frcrn-small\.onnx' is not calibrated for INT8"):
            OpenVinoBackend("int8").load(find_model("frcrn-small"), threads=1)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("{", "damaged"),
            ("[1]", "damaged"),
            ('{"unet.decoders.0": -1}', "must be positive"),
            ('{"unet.decoders.0": 1}', "not of this network"),
        ],
    )
    def test_a_damaged_calibration(self, calibrated, tmp_path, text, problem):
        import onnx

        from frcrn_accel.quantize.openvino_int8 import PROPERTY

        model = onnx.load(calibrated.path)
        next(entry for entry in model.metadata_props if entry.key == PROPERTY).value = text
        onnx.save(model, tmp_path / "damaged.onnx")
        with pytest.raises(ModelError, match=rf"damaged\.onnx.*{problem}"):
            OpenVinoBackend("int8").load(ModelFile.open(tmp_path / "damaged.onnx"), threads=1)

    def test_silence_is_no_calibration(self):
        from frcrn_accel.export import read_weights
        from frcrn_accel.quantize.openvino_int8 import calibrate

        with pytest.raises(ValueError, match="not silent"):
            calibrate(read_weights(find_model("frcrn-small").path), [])

    def test_limits_survive_json(self, calibrated, tmp_path):
        from frcrn_accel.quantize.openvino_int8 import read_limits, write_limits

        limits = read_limits(calibrated.path)
        write_limits(calibrated.path, tmp_path / "again.onnx", limits)
        assert read_limits(tmp_path / "again.onnx") == limits == json.loads(json.dumps(limits))
