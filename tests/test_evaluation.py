"""`evaluate`: on a plain gain as the denoiser, so that every score is known beforehand."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from frcrn_accel import AudioError, FrcrnAccelError
from frcrn_accel.denoiser import DenoiserOptions
from frcrn_accel.evaluate import CLEAN_IN, NOISE_OUT, Evaluation, Score, evaluate_clips
from frcrn_accel.quality import bootstrap_interval
from frcrn_accel.quality.clips import read_clips
from frcrn_accel.testing import FunctionBackend

pytest.importorskip("onnxruntime")
pytest.importorskip("pesq")
pytest.importorskip("pystoi")
pytest.importorskip("speechmos")

RATE = 16_000
METRICS = ["PESQ-WB", "STOI", "SI-SDR, dB", "DNSMOS SIG", "DNSMOS BAK", "DNSMOS OVRL"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, denoised):
    """Two pairs: the denoised example as clean speech, with white noise 10 dB and 20 dB below."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    clean = denoised[: 4 * RATE]
    for name in ("noisy", "clean"):
        (folder / name).mkdir()
    for name, snr_db in (("a.wav", 10), ("b.wav", 20)):
        noise = rng.standard_normal(len(clean)) * np.std(clean) * 10 ** (-snr_db / 20)
        soundfile.write(folder / "noisy" / name, clean + noise, RATE, "FLOAT")
        soundfile.write(folder / "clean" / name, clean, RATE, "FLOAT")
    return folder


def half(audio):
    return audio / 2


HALVED = DenoiserOptions(backend=FunctionBackend(half))
SILENCED = DenoiserOptions(backend=FunctionBackend(np.zeros_like))


class TestEvaluation:
    def test_a_gain_changes_no_score_but_the_level(self, pairs):
        found = evaluate_clips(read_clips(pairs, RATE), HALVED, components=True, processes=1)
        assert [score.name for score in found.scores] == ["a.wav", "b.wav"]
        assert found.precision == "fp32"
        for score, snr_db in zip(found.scores, (10, 20), strict=True):
            assert list(score.noisy) == METRICS
            assert score.noisy["SI-SDR, dB"] == pytest.approx(snr_db, abs=0.5)
            for metric in METRICS[:3]:
                assert score.denoised[metric] == pytest.approx(score.noisy[metric], abs=0.02)
            assert score.denoised[NOISE_OUT] == pytest.approx(20 * np.log10(0.5), abs=0.05)
            assert score.denoised[CLEAN_IN] > 4.6
            assert score.duration_s == 4

    def test_the_real_model_in_two_processes_is_as_in_one(self, pairs):
        calls = []
        options = DenoiserOptions(backend="ort")
        clips = read_clips(pairs, RATE)
        two = evaluate_clips(clips, options, processes=2, progress=lambda *step: calls.append(step))
        assert calls == [("evaluate", 0, 2), ("evaluate", 1, 2), ("evaluate", 2, 2)]
        assert two.scores == evaluate_clips(clips, options, processes=1).scores
        assert two.backend == "ort"
        assert two.scores[0].denoised["PESQ-WB"] > two.scores[0].noisy["PESQ-WB"]

    def test_without_clean_speech_there_is_dnsmos(self, pairs):
        found = evaluate_clips(read_clips(pairs / "noisy", RATE), HALVED, components=True, processes=1)
        assert all(list(score.noisy) == list(score.denoised) == METRICS[3:] for score in found.scores)

    def test_clean_speech_in_a_folder_of_its_own(self, pairs, tmp_path):
        (pairs / "clean").rename(tmp_path / "elsewhere")
        try:
            clips = read_clips(pairs / "noisy", RATE, tmp_path / "elsewhere")
        finally:
            (tmp_path / "elsewhere").rename(pairs / "clean")
        assert all(clip.clean is not None for clip in clips)

    def test_an_output_of_zeros_has_scores(self, pairs):
        found = evaluate_clips(
            read_clips(pairs, RATE)[:1],
            SILENCED,
            components=True,
            processes=1,
        )
        (score,) = found.scores
        assert score.denoised["SI-SDR, dB"] == -120
        assert score.denoised[NOISE_OUT] == -120
        assert "PESQ-WB" not in score.denoised
        assert CLEAN_IN not in score.denoised

    def test_a_recording_too_short_for_stoi_has_the_other_scores(self, pairs):
        clip = read_clips(pairs, RATE)[0]
        short = dataclasses.replace(clip, noisy=clip.noisy[:4000], clean=clip.clean[:4000], duration_s=0.25)
        (score,) = evaluate_clips([short], HALVED, processes=1).scores
        assert "STOI" not in score.noisy
        assert score.denoised["SI-SDR, dB"] == pytest.approx(score.noisy["SI-SDR, dB"], abs=0.1)

    def test_constant_clean_speech_has_no_scores_with_reference(self, pairs):
        clip = read_clips(pairs, RATE)[0]
        constant = dataclasses.replace(clip, clean=np.full_like(clip.noisy, 0.1))
        (score,) = evaluate_clips([constant], HALVED, processes=1).scores
        assert list(score.noisy) == list(score.denoised) == METRICS[3:]

    def test_a_backend_that_does_not_use_threads(self, pairs):
        class OnCard(FunctionBackend):
            uses_threads = False

        found = evaluate_clips(read_clips(pairs, RATE)[:1], DenoiserOptions(backend=OnCard(half)), processes=1)
        assert len(found.scores) == 1

    def test_means_intervals_and_differences(self):
        scores = tuple(
            Score(str(i), 1.0, {"A": float(i)}, {"A": 2.0 * i, "B": 1.0} if i else {"A": 0.0}) for i in range(5)
        )
        first, second = Evaluation("m", "b", "fp32", "cpu", scores).summaries()
        assert (first.metric, first.clips) == ("A", 5)
        assert first.noisy == (2.0, bootstrap_interval(np.arange(5.0)))
        assert first.denoised[0] == 4
        assert first.change == (2.0, bootstrap_interval(np.arange(5.0)))
        assert (second.metric, second.clips, second.noisy, second.change) == ("B", 4, None, None)
        assert second.denoised == (1.0, (1.0, 1.0))


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(AudioError, match="is not a folder: give a folder of noisy speech"):
        read_clips(tmp_path / "none", RATE)


def test_an_error_in_the_model_comes_first(pairs):
    with pytest.raises(FrcrnAccelError, match="unknown backend 'fast'"):
        evaluate_clips(read_clips(pairs, RATE), DenoiserOptions(backend="fast"))


def test_json_has_every_score(pairs):
    found = evaluate_clips(read_clips(pairs, RATE), HALVED, processes=1)
    content = json.loads(json.dumps(found.to_json()))
    assert list(content) == ["model", "backend", "precision", "device", "summary", "clips"]
    assert list(content["summary"]) == METRICS
    assert list(content["summary"]["STOI"]) == ["clips", "noisy", "denoised", "change", "not_scored"]
    assert content["clips"][1]["name"] == "b.wav"
    assert content["clips"][1]["noisy"]["STOI"] == found.scores[1].noisy["STOI"]
    assert len(content["summary"]["STOI"]["noisy"]["interval"]) == 2
