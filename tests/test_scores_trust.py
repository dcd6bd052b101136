"""Scores are numbers of what was measured, or missing with the reason; NaN passes nowhere."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from frcrn_accel import AudioError, AudioWarning, CorpusError, EngineError, ModelError, QuantizeError, TrainingError
from frcrn_accel.corpus import CorpusJob
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.evaluate import Evaluation, evaluate_clips
from frcrn_accel.quality import dnsmos, pesq_wb, stoi
from frcrn_accel.quality.clips import Clip, read_channels, read_clips
from frcrn_accel.testing import FunctionBackend

RATE = 16_000
RNG = np.random.default_rng(0)
SPEECH = (0.1 * RNG.standard_normal(2 * RATE)).astype(np.float32)
WITH_REFERENCE = ("PESQ-WB", "STOI", "SI-SDR, dB")


def evaluate(*clips: Clip) -> Evaluation:
    return evaluate_clips(clips, DenoiserOptions(backend=FunctionBackend), processes=1)


def clip(name: str, noisy: np.ndarray, clean: np.ndarray | None) -> Clip:
    return Clip(name, Path(name), len(noisy) / RATE, noisy, clean)


class TestStoi:
    @pytest.fixture(autouse=True)
    def package(self) -> None:
        pytest.importorskip("pystoi")

    @given(st.integers(1, 6_000))
    @settings(max_examples=10, derandomize=True, database=None, deadline=None)
    def test_short_audio_has_no_score(self, samples: int) -> None:
        with pytest.raises(AudioError, match="STOI cannot score this: it needs about half a second of speech"):
            stoi(SPEECH[:samples], SPEECH[:samples] * 0.5)

    def test_a_short_burst_in_silence_has_no_score_whatever_warnings_do(self) -> None:
        burst = np.zeros(3 * RATE, np.float32)
        burst[20_000:22_000] = SPEECH[:2_000]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(AudioError, match="half a second of speech"):
                stoi(burst, burst)

    def test_a_silent_reference(self) -> None:
        with pytest.raises(AudioError, match="the reference is silent"):
            stoi(np.zeros(RATE, np.float32), SPEECH[:RATE])


@pytest.mark.parametrize(("metric", "package"), [(pesq_wb, "pesq"), (stoi, "pystoi")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_have_no_score(metric, package: str, value: float) -> None:
    pytest.importorskip(package)
    bad = SPEECH.copy()
    bad[9] = value
    for pair, what in (((bad, SPEECH), "reference"), ((SPEECH, bad), "estimate")):
        with pytest.raises(AudioError, match=f"the {what} has NaN or infinity"):
            metric(*pair)
    with pytest.raises(AudioError, match="the lengths differ, 32000 and 31999 samples"):
        metric(SPEECH, SPEECH[:-1])


def test_dnsmos_of_nan() -> None:
    pytest.importorskip("speechmos")
    with pytest.raises(AudioError, match="has NaN or infinity"):
        dnsmos(np.full(RATE, np.nan, np.float32))


class TestEvaluation:
    @pytest.fixture(autouse=True)
    def packages(self) -> None:
        for package in ("pesq", "pystoi", "speechmos", "onnxruntime"):
            pytest.importorskip(package)

    def test_what_cannot_be_scored_is_said_and_counted_and_not_averaged(self) -> None:
        short = SPEECH[:400]  # 25 ms
        constant = np.full_like(SPEECH, 0.1)
        found = evaluate(clip("a", SPEECH, SPEECH * 0.5), clip("b", short, short), clip("c", SPEECH, constant))
        assert [dict(score.not_scored).keys() for score in found.scores] == [
            set(),
            {"PESQ-WB", "STOI"},
            set(WITH_REFERENCE),
        ]
        assert found.scores[1].not_scored["STOI"] == "STOI cannot score this: it needs about half a second of speech"
        assert found.scores[2].not_scored["SI-SDR, dB"] == "the clean speech is silent"
        summaries = {summary.metric: (summary.clips, summary.not_scored) for summary in found.summaries()}
        assert summaries["STOI"] == summaries["PESQ-WB"] == (1, 2)
        assert summaries["SI-SDR, dB"] == (2, 1)
        assert summaries["DNSMOS OVRL"] == (3, 0)
        values = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert values["summary"]["STOI"]["not_scored"] == 2
        assert values["clips"][1]["not_scored"]["PESQ-WB"].startswith("PESQ cannot score this: Buffer needs")

    def test_no_clips(self) -> None:
        with pytest.raises(ValueError, match="there are no clips to evaluate"):
            evaluate_clips([], DenoiserOptions())

    def test_a_process_that_dies(self) -> None:
        from dying import DyingBackend

        clips = [clip("a", np.resize(SPEECH, 40_000), None), clip("b", SPEECH[:400], None)]
        with pytest.raises(EngineError, match="one of 2 processes that denoise and score died"):
            evaluate_clips(clips, DenoiserOptions(backend=DyingBackend), processes=2)


class TestFiles:
    def test_nan_in_a_file_is_named(self, tmp_path: Path) -> None:
        audio = SPEECH.copy()
        audio[700] = np.nan
        soundfile.write(tmp_path / "a.wav", audio, RATE, "FLOAT")
        message = f"'{tmp_path}/a.wav': audio contains NaN or infinity, first in channel 0 at sample 700"
        with pytest.raises(AudioError, match=message):
            read_channels(tmp_path / "a.wav", RATE)
        with pytest.raises(AudioError, match=message):
            read_clips(tmp_path, RATE)

    @pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
    def test_pairs_of_different_rates_have_one_length(self, tmp_path: Path, rate: int) -> None:
        for folder, each in (("noisy", rate), ("clean", RATE)):
            (tmp_path / folder).mkdir()
            soundfile.write(tmp_path / folder / "a.wav", np.resize(SPEECH, 2 * each), each, "FLOAT")
        (found,) = read_clips(tmp_path, RATE)
        assert found.noisy.shape == found.clean.shape == (2 * RATE,)
        assert read_channels(tmp_path / "noisy" / "a.wav", RATE, 0.5).shape == (1, RATE // 2)

    def test_nan_in_training_audio_is_named(self, tmp_path: Path) -> None:
        pytest.importorskip("torch")
        from frcrn_accel.train.config import Source
        from frcrn_accel.train.sources import prepare_source

        (tmp_path / "speech").mkdir()
        audio = SPEECH.copy()
        audio[700] = np.inf
        soundfile.write(tmp_path / "speech/bad.wav", audio, RATE, "FLOAT")
        with pytest.raises(AudioError, match=r"speech/bad\.wav': audio contains NaN or infinity"):
            prepare_source(Source("speech"), tmp_path, tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_silent_and_empty_clips_are_named(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", SPEECH, RATE)
        soundfile.write(tmp_path / "b.wav", np.zeros(100), RATE)
        with pytest.warns(AudioWarning, match=r"'b\.wav' is left out: it is silent"):
            assert [clip.name for clip in read_clips(tmp_path, RATE)] == ["a.wav"]
        soundfile.write(tmp_path / "b.wav", np.zeros(0), RATE)
        with pytest.warns(AudioWarning, match=r"'b\.wav' is left out: it has no audio"):
            read_clips(tmp_path, RATE)
        (tmp_path / "a.wav").unlink()
        with pytest.raises(AudioError, match="has only silent or empty files"):
            read_clips(tmp_path, RATE)

    def test_resource_forks_of_macos_are_left_out(self, tmp_path: Path) -> None:
        soundfile.write(tmp_path / "a.wav", SPEECH, RATE)
        (tmp_path / "._a.wav").write_bytes(b"\0\5\x16\7")
        assert [clip.name for clip in read_clips(tmp_path, RATE)] == ["a.wav"]


class TestNanInOptions:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"skip_clean": np.nan}, "skip_clean must be a DNSMOS from 1 to 5, got nan"),
            ({"skip_clean": 0.0}, "got 0"),
            ({"gpus": np.nan, "workers_on": "ray"}, "gpus must be 0 or more, got nan"),
            ({"workers": 0}, "workers must be 1 or more"),
            ({"files_per_tar": 0}, "files_per_tar must be 1 or more"),
        ],
    )
    def test_of_a_job(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(CorpusError, match=message):
            CorpusJob("in", "out", **arguments).check()


def test_weights_of_a_model_file_that_are_not_finite(tiny, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    from frcrn_accel.models import read_weights

    model = onnx.load(tiny.path)
    name = "unet.linear.conv_re.bias"
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), np.nan), name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(ModelError, match=f"weights that are not finite: {name}"):
        read_weights(tmp_path / "nan.onnx")


def test_the_log_of_a_run_is_json(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from frcrn_accel.train.log import append_entry, read_log

    append_entry(tmp_path / "log.jsonl", {"step": 3, "loss": float("nan"), "more": {"x": [float("inf"), 1.5]}})
    assert read_log(tmp_path / "log.jsonl") == [{"step": 3, "loss": None, "more": {"x": [None, 1.5]}}]
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_ranges_that_are_not_finite_quantize_nothing(value: float) -> None:
    from frcrn_accel.quantize.ranges import FsmnRanges, Ranges

    one = np.ones(2, np.float32)
    with pytest.raises(QuantizeError, match="not finite"):
        FsmnRanges(np.stack([one, one]), one, 1.0, value, 1.0, 1.0)
    with pytest.raises(QuantizeError, match="not finite"):
        FsmnRanges(np.stack([one, one * np.float32(value)]), one, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(QuantizeError, match="not finite"):
        Ranges({}, {"unet.encoders.1": (1.0, value)})


@pytest.mark.parametrize("number", ["1e30", "nan", "-inf", "1" + 400 * "0"])
@pytest.mark.parametrize("key", ["optimisation.learning_rate", "optimisation.steps", "validation.clip_s"])
def test_numbers_of_a_training_config(number: str, key: str) -> None:
    pytest.importorskip("torch")
    from frcrn_accel.train.config import parse_config

    table, name = key.split(".")
    value = int(number) if number.isdecimal() else float(number)
    tables = {"data": {"speech": [{"path": "a"}], "noise": [{"path": "b"}]}, "optimisation": {"steps": 9}}
    tables[table] = {**tables.get(table, {}), name: value}
    with pytest.raises(TrainingError, match=f"'{key}' must be a number up to"):
        parse_config(tables)
