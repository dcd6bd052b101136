from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest

from frcrn_accel import (
    AudioError,
    MissingExtraError,
    ModelError,
    OutputExistsError,
    QualityError,
    QuantizeError,
    __version__,
)
from frcrn_accel.backends.ort import OrtBackend
from frcrn_accel.digest import sha256_of
from frcrn_accel.models import ModelFile, find_model, packaged_variant, read_weights
from frcrn_accel.network.topology import Config, layer_group, layer_groups
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.quality.clips import read_clips
from frcrn_accel.quantize import (
    CALIBRATION_AUDIO,
    GATE_AUDIO,
    MAX_RESCUED,
    METHODS,
    GateThresholds,
    Method,
    Source,
    quantize_model,
    quantizer,
)
from frcrn_accel.quantize.recordings import sample_numbers
from frcrn_accel.testing import random_weights

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from frcrn_accel.graph.forms import build_graph  # noqa: E402

RUNNABLE = ("dynamic", "fp16")
DAMAGED_GROUP = "unet.decoders.5"
FP16 = METHODS["fp16"].prepare({}, [])
SOME_GROUPS = ("unet.encoders.0", "unet.fsmn", DAMAGED_GROUP)  # of 31: each one in a sensitivity table takes its time


@pytest.fixture
def damaged(monkeypatch):
    """A method that negates the weights of one layer group, unless that is kept in float."""

    def build(weights, metadata, keep_float):
        turned = {
            key: -value
            if value.ndim > 1 and layer_group(key) == DAMAGED_GROUP and DAMAGED_GROUP not in keep_float
            else value
            for key, value in weights.items()
        }
        return build_graph(turned, metadata.name, __version__, metadata.to_properties())

    method = Method("damaged", "-", False, lambda weights, audio, progress: build, groups=lambda config: SOME_GROUPS)
    monkeypatch.setitem(METHODS, "damaged", method)
    return "damaged"


@pytest.fixture
def tiny_weights():
    return random_weights(Config(16, 1))


@pytest.mark.usefixtures("no_eval")
class TestQuantize:
    @pytest.mark.parametrize("method", RUNNABLE)
    def test_the_file_and_the_report(self, tiny, short_audio, tmp_path, method):
        steps = []
        report = quantize_model(
            tiny.path,
            tmp_path / "small.onnx",
            method,
            gate_audio=short_audio,
            keep_float=["unet.encoders.1", "unet.fsmn_enc.1", "unet.encoders.1"],
            progress=lambda *step: steps.append(step),
        )
        model = find_model(tmp_path / "small.onnx")
        assert model.metadata == dataclasses.replace(
            tiny.metadata,
            library_version=__version__,
            method=method,
            source_sha256=sha256_of(tiny.path),
            gate="passed",
            kept_float=("unet.fsmn_enc.1", "unet.encoders.1"),
        )
        assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
        assert (report.verdict, report.method, report.model) == ("passed", method, "tiny")
        assert (report.source, report.output) == (str(tiny.path), str(model.path))
        assert report.source_sha256 == sha256_of(tiny.path)
        assert report.output_sha256 == sha256_of(model.path)
        assert (report.source_bytes, report.output_bytes) == tuple(f.path.stat().st_size for f in (tiny, model))
        assert report.size_ratio == report.output_bytes / report.source_bytes < 0.95  # mostly graph
        assert report.gate.measures[0].value > 35
        assert report.sensitivity == ()
        assert not [step for step in steps if step[0] == "score"]  # neither metric can be had
        steps = [step for step in steps if step[0] != "measure ranges"]
        assert steps == [("build", 0, 1), ("build", 1, 1), ("gate", 0, 2), ("gate", 1, 2), ("gate", 2, 2)]
        values = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert values["gate"]["measures"][0]["passed"] is True
        assert values["thresholds"] == {"max_pesq_drop_percent": 1, "min_si_sdr_db": 30, "max_dnsmos_drop": 0.03}
        assert values["size_ratio"] == report.size_ratio

    @pytest.mark.parametrize("method", RUNNABLE)
    def test_with_all_in_float_it_is_the_source(self, tiny, short_audio, tmp_path, method):
        groups = METHODS[method].groups(Config(16, 1))
        report = quantize_model(
            tiny.path, tmp_path / "a.onnx", method, gate_audio=short_audio, keep_float=groups, sensitivity=True
        )
        assert report.gate.measures[0].value > 100
        assert report.sensitivity == ()

    def test_sensitivity_on_request(self, tiny, short_audio, tmp_path, monkeypatch):
        some = dataclasses.replace(METHODS["dynamic"], groups=lambda config: SOME_GROUPS)
        monkeypatch.setitem(METHODS, "dynamic", some)
        steps = []
        report = quantize_model(
            tiny.path,
            tmp_path / "a.onnx",
            "dynamic",
            gate_audio=short_audio,
            keep_float=["unet.fsmn"],
            sensitivity=True,
            progress=lambda *step: steps.append(step),
        )
        assert report.verdict == "passed"
        assert {cost.group for cost in report.sensitivity} == set(SOME_GROUPS) - {"unet.fsmn"}
        levels = [cost.si_sdr_db for cost in report.sensitivity]
        assert levels == sorted(levels)
        assert 30 < levels[0] < 120
        assert steps[-1] == ("sensitivity", len(levels), len(levels))
        assert find_model(tmp_path / "a.onnx").metadata.kept_float == ("unet.fsmn",)
        assert sha256_of(tmp_path / "a.onnx") == report.output_sha256

    def test_without_the_gate_the_file_says_so(self, tiny, tmp_path, damaged):
        report = quantize_model(tiny.path, tmp_path / "a.onnx", damaged, gate=None)
        assert (report.verdict, report.gate, report.thresholds) == ("skipped", None, None)
        assert find_model(tmp_path / "a.onnx").metadata.gate == "skipped"
        json.dumps(report.to_json(), allow_nan=False)

    def test_a_known_name_is_a_model_too(self, tmp_path):
        report = quantize_model("frcrn-small", tmp_path / "a.onnx", "fp16", gate=None)
        assert report.model == "frcrn-small"


@pytest.mark.usefixtures("no_eval")
class TestRefusal:
    def test_a_damaged_file_is_not_put_in_place(self, tiny, short_audio, tmp_path, damaged):
        out = tmp_path / "a.onnx"
        out.write_bytes(b"precious")
        with pytest.raises(QualityError) as caught:
            quantize_model(tiny.path, out, damaged, gate_audio=short_audio, max_rescued=0, overwrite=True)
        assert out.read_bytes() == b"precious"
        assert list(tmp_path.iterdir()) == [out]
        text, report = str(caught.value), caught.value.report
        assert "\n" not in text
        assert f"{str(out)!r} was not written, too far from {str(tiny.path)!r}: SI-SDR to the source's output" in text
        assert f"The costliest layer groups are {DAMAGED_GROUP} (" in text
        assert report.verdict == "refused"
        assert report.sensitivity[0].group == DAMAGED_GROUP
        assert report.sensitivity[0].si_sdr_db < 30
        assert all(cost.si_sdr_db == 120 for cost in report.sensitivity[1:])
        assert text.endswith(f" dB alone): keep them in float with --keep-float {DAMAGED_GROUP}")
        assert json.loads(json.dumps(report.to_json(), allow_nan=False))["gate"]["measures"][0]["passed"] is False

    def test_its_advice_helps(self, tiny, short_audio, tmp_path, damaged):
        report = quantize_model(
            tiny.path, tmp_path / "a.onnx", damaged, gate_audio=short_audio, keep_float=[DAMAGED_GROUP]
        )
        assert report.verdict == "passed"
        assert report.kept_float == (DAMAGED_GROUP,)

    def test_by_default_what_it_names_stays_in_float(self, tiny, short_audio, tmp_path, damaged):
        report = quantize_model(tiny.path, tmp_path / "a.onnx", damaged, gate_audio=short_audio)
        assert report.verdict == "passed"
        assert report.kept_float == report.rescue.groups == (DAMAGED_GROUP,)
        assert report.rescue.refused_for.startswith("SI-SDR to the source's output ")
        assert report.rescue.bytes_without == pytest.approx(report.output_bytes, rel=0.01)
        assert [cost.group for cost in report.sensitivity] == [DAMAGED_GROUP]
        assert json.loads(json.dumps(report.to_json()))["rescue"]["groups"] == [DAMAGED_GROUP]

    def test_nothing_is_left_to_keep_in_float(self, tiny, short_audio, tmp_path, damaged, monkeypatch):
        monkeypatch.setitem(METHODS, damaged, dataclasses.replace(METHODS[damaged], groups=lambda config: ()))
        with pytest.raises(QualityError, match="even with every layer group in float") as caught:
            quantize_model(tiny.path, tmp_path / "a.onnx", damaged, gate_audio=short_audio)
        assert caught.value.report.sensitivity == ()

    def test_thresholds_decide(self, tiny, short_audio, tmp_path, damaged):
        thresholds = GateThresholds(min_si_sdr_db=-50)
        report = quantize_model(tiny.path, tmp_path / "a.onnx", damaged, gate=thresholds, gate_audio=short_audio)
        assert report.verdict == "passed"
        assert report.thresholds == thresholds


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (
                {"method": "int4"},
                QuantizeError,
                "unknown method 'int4': choose one of dynamic, static, openvino-int8, tensorrt-int8, fp16",
            ),
            (
                {"method": "static"},
                QuantizeError,
                r"give --calibration DIR, .* has one at '.*calibration'",
            ),
            ({"calibration": CALIBRATION_AUDIO}, QuantizeError, "'dynamic' does not use calibration audio"),
            (
                {"keep_float": ["unet.encoders.9"]},
                QuantizeError,
                r"unknown layer group 'unet.encoders.9' for method 'dynamic': choose from unet.fsmn_enc.1, "
                r".*unet.fsmn_dec.5",
            ),
            ({"model": "none.onnx"}, ModelError, r"none\.onnx' cannot be read"),
            ({"model": "a.pt"}, ModelError, "is a checkpoint, not a model file"),
            ({"out": "no/such/folder.onnx"}, ModelError, r"folder\.onnx' cannot be written: No such file"),
        ],
    )
    def test_the_error_says_what_is_wrong(self, tiny, tmp_path, monkeypatch, arguments, error, message):
        monkeypatch.chdir(tmp_path)
        given = {"model": tiny.path, "out": "a.onnx", "method": "dynamic"} | arguments
        with pytest.raises(error, match=message):
            quantize_model(**given)
        assert list(tmp_path.iterdir()) == []

    def test_a_quantized_file_is_not_a_source(self, tiny, tmp_path):
        quantize_model(tiny.path, tmp_path / "a.onnx", "fp16", gate=None)
        with pytest.raises(ModelError, match=r"a\.onnx' is quantized \(fp16\)") as caught:
            quantize_model(tmp_path / "a.onnx", tmp_path / "b.onnx", "dynamic")
        assert sha256_of(tiny.path) in str(caught.value)

    def test_gate_audio_that_is_not_there(self, tiny, tmp_path):
        with pytest.raises(AudioError, match="is not a folder"):
            quantize_model(tiny.path, tmp_path / "a.onnx", "dynamic", gate_audio=tmp_path / "none")

    def test_an_existing_file(self, tiny, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"precious")
        with pytest.raises(OutputExistsError):
            quantize_model(tiny.path, tmp_path / "a.onnx", "dynamic", gate=None)
        assert (tmp_path / "a.onnx").read_bytes() == b"precious"

    def test_without_the_extra(self, tiny, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnx", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'frcrn-accel\[quantize\]'"):
            quantize_model(tiny.path, tmp_path / "a.onnx", "dynamic")


@pytest.mark.usefixtures("no_eval")
def test_calibration_audio_reaches_the_method(tiny, short_audio, tmp_path, monkeypatch):
    seen = []

    def prepare(weights, audio, progress):
        seen.extend(audio)
        return FP16

    monkeypatch.setitem(METHODS, "ranges", Method("ranges", "-", True, prepare))
    report = quantize_model(tiny.path, tmp_path / "a.onnx", "ranges", calibration=short_audio, gate_audio=short_audio)
    assert [(audio.shape, audio.dtype) for audio in seen] == [
        ((1, 32_640), np.float32)
    ] * 2  # once, however many graphs are built
    assert len(report.calibration_sha256) == 64
    assert find_model(tmp_path / "a.onnx").metadata.calibration_sha256 == report.calibration_sha256


class TestFp16:
    def test_weights_are_stored_once_and_in_half(self, tiny_weights, tiny):
        model = FP16(tiny_weights, tiny.metadata, frozenset({"unet.encoders.1"}))
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for key, value in tiny_weights.items():
            half = value.size >= 1_000 and not key.startswith("unet.encoders.1.")
            assert stored[key].data_type == (onnx.TensorProto.FLOAT16 if half else onnx.TensorProto.FLOAT), key
            assert list(stored[key].dims) == list(value.shape)
        others = sum(int(np.prod(t.dims)) for name, t in stored.items() if name not in tiny_weights)
        assert others < 10_000

    def test_a_released_size_file_is_half_of_fp32(self, tiny):
        weights = random_weights(Config(128, 1))
        half = FP16(weights, tiny.metadata, frozenset())
        full = build_graph(weights, "a", "0", {})
        assert 0.5 < half.ByteSize() / full.ByteSize() < 0.53

    def test_what_loses_precision_stays_in_float(self, tiny_weights, tiny):
        model = FP16(tiny_weights, tiny.metadata, frozenset({"unet.decoders.2"}))
        inferred = onnx.shape_inference.infer_shapes(model)
        types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
        half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        of_kind: dict[tuple[str, str], set[int]] = {}
        for node in model.graph.node:
            scope = node.name.rpartition("/")[0]
            found = {types[name] for name in node.output if name in types}
            of_kind.setdefault((scope, node.op_type), set()).update(found)
        assert of_kind["stft", "Conv"] == {full}
        assert of_kind["istft", "ConvTranspose"] == of_kind["istft", "Div"] == {full}
        assert of_kind["unet", "Tanh"] == of_kind["mask", "Mul"] == {full}
        assert of_kind["unet/se_layers_enc.3", "GlobalAveragePool"] == {full}
        assert of_kind["unet/se_layers_enc.3", "Conv"] == of_kind["unet/se_layers_enc.3", "Sigmoid"] == {full}
        assert of_kind["unet/se_layers_enc.3", "Mul"] == {half}  # the signal, scaled
        assert of_kind["unet/decoders.2", "Conv"] == of_kind["unet/linear", "Conv"] == {full}
        for layer in ("encoders.0", "encoders.4", "fsmn_enc.2", "fsmn.L1", "decoders.1", "decoders.6"):
            assert of_kind[f"unet/{layer}", "Conv"] == {half}, layer
        for value in (*model.graph.input, *model.graph.output):
            assert value.type.tensor_type.elem_type == full

    @pytest.mark.parametrize(("peak", "agreement_db"), [(1.0, 60), (0.3, 60), (0.05, 45)])
    def test_it_agrees_with_fp32_up_to_full_scale(self, noisy, tmp_path, peak, agreement_db):
        source = find_model("frcrn-small")
        quantize_model(source.path, tmp_path / "half.onnx", "fp16", gate=None)
        audio = noisy[None, :64_000] * np.float32(peak / np.abs(noisy).max())
        half = ModelFile.open(tmp_path / "half.onnx")
        expected, found = (OrtBackend().load(model, threads=1).run(audio) for model in (source, half))
        assert found.dtype == np.float32
        assert si_sdr_db(expected[0], found[0]) > agreement_db

    def test_a_weight_beyond_its_range_stays_in_float(self, tiny_weights, tiny):
        key = "unet.encoders.3.conv.conv_re.weight"
        model = FP16({**tiny_weights, key: tiny_weights[key] * 0 + 1e5}, tiny.metadata, frozenset())
        (stored,) = (tensor for tensor in model.graph.initializer if tensor.name == key)
        assert stored.data_type == onnx.TensorProto.FLOAT


def test_layer_groups():
    groups = layer_groups(Config(16, 2))
    assert len(groups) == len(set(groups)) == 2 * (7 + 6 + 6 + 1 + 7 + 6 + 5 + 1)
    assert groups[:4] == ("unet.encoders.0", "unet.se_layers_enc.0", "unet.fsmn_enc.1", "unet.encoders.1")
    assert groups[-1] == "unet2.linear"
    assert layer_group("unet.fsmn.fsmn_re_L1.linear.weight") == "unet.fsmn"


@pytest.mark.usefixtures("no_eval")  # the limits switch PESQ and DNSMOS off
def test_a_refused_candidate_is_rescued_group_by_group(tiny, short_audio, tmp_path, monkeypatch):
    """The costliest groups are left in float, as few as needed, and the metadata list them."""
    some = dataclasses.replace(METHODS["dynamic"], groups=lambda config: SOME_GROUPS)
    monkeypatch.setitem(METHODS, "dynamic", some)

    def quantized(name, least_db, max_rescued, source=tiny.path):
        limits = GateThresholds(max_pesq_drop_percent=100, max_dnsmos_drop=5, min_si_sdr_db=least_db)
        options = {"gate": limits, "gate_audio": short_audio, "max_rescued": max_rescued}
        return quantize_model(source, tmp_path / name, "dynamic", **options)

    without = quantized("none.onnx", 0, 0)
    (alone,) = [m for m in without.gate.measures if m.metric.startswith("SI-SDR")]
    least_db = alone.value + 0.5
    with pytest.raises(QualityError) as refusal:
        quantized("a.onnx", least_db, 0)
    costs = refusal.value.report.sensitivity
    assert list(costs) == sorted(costs, key=lambda cost: cost.si_sdr_db)
    report = quantized("a.onnx", least_db, MAX_RESCUED)
    assert report.verdict == "passed"
    count = len(report.kept_float)
    assert 1 <= count <= MAX_RESCUED
    assert set(report.kept_float) == {cost.group for cost in costs[:count]}
    assert report.rescue.groups == tuple(cost.group for cost in costs[:count])
    assert report.rescue.bytes_without == pytest.approx(without.output_bytes, abs=16)  # metadata name the gate
    assert ModelFile.open(tmp_path / "a.onnx").metadata.kept_float == report.kept_float
    if count > 1:
        with pytest.raises(QualityError):
            quantized("b.onnx", least_db, count - 1)
    # A guess that is not enough changes nothing.
    source = Source(tiny)
    source.rescued = (costs[-1].group,)
    assert source.rescued[0] not in report.kept_float
    assert quantized("c.onnx", least_db, MAX_RESCUED, source).kept_float == report.kept_float
    # One that is enough needs no search.
    source.rescued = report.kept_float
    guessed = quantized("d.onnx", least_db, MAX_RESCUED, source)
    assert (guessed.kept_float, guessed.sensitivity) == (report.kept_float, ())


@pytest.mark.usefixtures("no_eval")
def test_groups_that_were_refused_are_not_tried_again(tiny, short_audio, tmp_path, monkeypatch):
    """Two groups are damaged; the search comes to the likely one first."""
    damaged = (SOME_GROUPS[0], DAMAGED_GROUP)

    def build(weights, metadata, keep_float):
        turned = set(damaged) - set(keep_float)
        weights = {
            key: -value if value.ndim > 1 and layer_group(key) in turned else value for key, value in weights.items()
        }
        return build_graph(weights, metadata.name, __version__, metadata.to_properties())

    method = Method("damaged", "-", False, lambda weights, audio, progress: build, groups=lambda config: SOME_GROUPS)
    monkeypatch.setitem(METHODS, "damaged", method)

    source = Source(tiny)
    source.rescued = damaged[:1]
    steps = []
    report = quantize_model(
        source, tmp_path / "a.onnx", "damaged", gate_audio=short_audio, progress=lambda *step: steps.append(step)
    )
    assert report.rescue.groups == damaged
    assert steps.count(("gate", 0, 2)) == 4  # none, the likely one, both, and the second without the first


class TestAsBefore:
    """Ranges are read from a file that the same method made earlier, not measured again."""

    @pytest.mark.parametrize("method", ["dynamic", "static"])
    def test_the_packaged_file_is_made_again(self, method):
        source = find_model("frcrn-small")
        made = packaged_variant(source, method)
        build = METHODS[method].prepare_as_before(made)
        model = build(read_weights(source.path), made.metadata, frozenset(made.metadata.kept_float))
        assert model.SerializeToString() == made.path.read_bytes()

    @pytest.mark.thorough
    def test_it_is_what_is_measured(self):
        source = find_model("frcrn-small")
        made = packaged_variant(source, "dynamic")
        build = METHODS["dynamic"].prepare(read_weights(source.path), [])
        model = build(read_weights(source.path), made.metadata, frozenset(made.metadata.kept_float))
        stored = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(made.path).graph.initializer
        }
        assert [tensor.name for tensor in model.graph.initializer] == list(stored)
        for tensor in model.graph.initializer:  # the last digit of a float depends on the CPU
            found, expected = onnx.numpy_helper.to_array(tensor), stored[tensor.name]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=int(expected.dtype == np.int8))

    @pytest.mark.parametrize(
        ("method", "calibration", "version", "expected"),
        [
            ("dynamic", None, __version__, "before"),
            ("static", "packaged", __version__, "before"),
            ("static", "other", __version__, "measured"),
            ("dynamic", None, "another", "measured"),
        ],
    )
    def test_only_for_the_same_audio_and_version(
        self, short_audio, tmp_path, monkeypatch, method, calibration, version, expected
    ):
        used = []

        def prepare(weights, audio, progress):
            used.append("measured")
            return FP16

        def as_before(made):
            assert made == packaged_variant(find_model("frcrn-small"), method)
            used.append("before")
            return FP16

        noted = dataclasses.replace(METHODS[method], prepare=prepare, prepare_as_before=as_before)
        monkeypatch.setitem(METHODS, method, noted)
        monkeypatch.setattr(quantizer, "__version__", version)
        folder = {None: None, "packaged": CALIBRATION_AUDIO, "other": short_audio}[calibration]
        steps = []
        quantize_model(
            "frcrn-small",
            tmp_path / "a.onnx",
            method,
            calibration=folder,
            gate=None,
            progress=lambda *step: steps.append(step),
        )
        assert used == [expected]
        assert (("measure ranges", 1, 1) in steps) == (expected == "before")


@pytest.mark.usefixtures("no_eval")
def test_a_group_that_others_made_needless_is_quantized(tiny, short_audio, tmp_path, monkeypatch):
    """The group that costs most alone costs nothing beside others."""
    costly_alone = SOME_GROUPS[0]

    def build(weights, metadata, keep_float):
        quantized = set(SOME_GROUPS) - set(keep_float)
        turned = [layer_group(key) for key in weights] if quantized == {costly_alone} else quantized & {DAMAGED_GROUP}
        weights = {
            key: -value if value.ndim > 1 and layer_group(key) in turned else value for key, value in weights.items()
        }
        return build_graph(weights, metadata.name, __version__, metadata.to_properties())

    method = Method("damaged", "-", False, lambda weights, audio, progress: build, groups=lambda config: SOME_GROUPS)
    monkeypatch.setitem(METHODS, "damaged", method)
    report = quantize_model(tiny.path, tmp_path / "a.onnx", "damaged", gate_audio=short_audio)
    assert [cost.group for cost in report.sensitivity] == [costly_alone, DAMAGED_GROUP]
    assert (report.verdict, report.kept_float, report.rescue.groups) == ("passed", (DAMAGED_GROUP,), (DAMAGED_GROUP,))
    assert ModelFile.open(tmp_path / "a.onnx").metadata.kept_float == (DAMAGED_GROUP,)
    assert sha256_of(tmp_path / "a.onnx") == report.output_sha256


def test_a_few_clips_are_taken_from_all_over(short_audio):
    clips = read_clips(GATE_AUDIO, 16_000)
    assert [clips[number].name for number in sample_numbers(clips, 8)] == ["00.opus", "04.opus"]
    assert len(sample_numbers(read_clips(short_audio, 16_000), 8)) == 2
