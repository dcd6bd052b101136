from __future__ import annotations

import sys

import numpy as np
import pytest
import soundfile

from frcrn_accel import AudioError, MissingExtraError
from frcrn_accel.cli import main
from frcrn_accel.quality import (
    MAX_AGREEMENT_DB,
    Scorer,
    agreement_db,
    bootstrap_interval,
    dnsmos,
    is_silent,
    pesq_wb,
    score_or_none,
    si_sdr_db,
    stoi,
)
from frcrn_accel.quality.ratings import load_network

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 25.0])
def test_si_sdr_of_orthogonal_noise_is_the_snr_at_any_level(snr_db):
    t = np.arange(16_000) / 16_000
    speech, noise = np.sin(2 * np.pi * 300 * t), np.cos(2 * np.pi * 300 * t)
    mixture = speech + noise * 10 ** (-snr_db / 20)
    for gain, offset in ((1, 0), (0.01, 0.5)):
        assert si_sdr_db(speech, gain * mixture + offset) == pytest.approx(snr_db, abs=1e-6)


class TestAgreement:
    SPEECH = RNG.standard_normal(1_000).astype(np.float32)
    SILENCE = np.zeros(1_000, np.float32)

    def test_between_the_limits_it_is_si_sdr(self):
        noisy = self.SPEECH + np.float32(0.1) * RNG.standard_normal(1_000).astype(np.float32)
        assert agreement_db(self.SPEECH, noisy) == si_sdr_db(self.SPEECH, noisy)

    @pytest.mark.parametrize("gain", [1, 0.5, -2])
    def test_equal_signals_and_multiples_agree_fully(self, gain):
        assert agreement_db(self.SPEECH, gain * self.SPEECH) == MAX_AGREEMENT_DB

    @pytest.mark.parametrize("offset", [0, 0.1])
    def test_two_silent_signals_agree_fully(self, offset):
        assert agreement_db(self.SILENCE, self.SILENCE + offset) == MAX_AGREEMENT_DB
        assert agreement_db(self.SILENCE + offset, self.SILENCE) == MAX_AGREEMENT_DB

    @pytest.mark.parametrize("offset", [0, 0.1])
    def test_a_silent_signal_and_another_agree_least(self, offset):
        assert agreement_db(self.SPEECH, self.SILENCE + offset) == -MAX_AGREEMENT_DB
        assert agreement_db(self.SILENCE + offset, self.SPEECH) == -MAX_AGREEMENT_DB

    def test_signals_with_nothing_in_common_agree_least(self):
        tone = np.tile([1.0, -1.0], 500)
        assert agreement_db(tone, np.tile([1.0, 1.0, -1.0, -1.0], 250)) == -MAX_AGREEMENT_DB

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_never_agree(self, value):
        broken = np.where(np.arange(1_000) == 500, value, self.SPEECH)
        for pair in ((broken, broken), (self.SPEECH, broken), (broken, self.SPEECH), (self.SILENCE, broken)):
            assert agreement_db(*pair) == -MAX_AGREEMENT_DB

    def test_a_signal_without_samples_is_silent(self):
        assert is_silent(np.zeros(0))
        assert agreement_db(np.zeros(0), np.zeros(0)) == MAX_AGREEMENT_DB

    def test_squares_beyond_float64_are_the_lowest_agreement(self):
        assert agreement_db(np.array([1e200, -1e200]), np.array([1e200, -2e200])) == -MAX_AGREEMENT_DB


class TestScorer:
    def test_a_score(self):
        assert Scorer().score("A", lambda: 3.5) == score_or_none(lambda: 3.5) == 3.5

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_a_number_that_is_not_finite_is_no_score(self, value):
        assert score_or_none(lambda: value) is None

    def test_audio_that_cannot_be_scored(self):
        def silent() -> float:
            raise AudioError("no speech")

        scorer = Scorer()
        assert scorer.score("A", silent) is None
        assert scorer.score("A", lambda: 1.0) == 1  # the next clip is scored again
        assert scorer.notes == {}

    def test_a_missing_package_skips_the_metric_once_and_for_all(self):
        calls = []

        def missing() -> float:
            calls.append(1)
            raise MissingExtraError("A", "eval", ImportError("no module"))

        scorer = Scorer()
        assert [scorer.score("A", missing) for _ in range(3)] == [None] * 3
        assert len(calls) == 1
        assert "pip install 'frcrn-accel[eval]'" in scorer.notes["A"]
        assert scorer.score("B", lambda: 2.0) == 2
        with pytest.raises(MissingExtraError):
            score_or_none(missing)

    def test_other_errors_are_not_hidden(self):
        with pytest.raises(ZeroDivisionError):
            Scorer().score("A", lambda: 1 / 0)


def test_stoi_of_short_audio_is_a_clear_error():
    pytest.importorskip("pystoi")
    for samples in (0, 400, 3_200):
        with pytest.raises(AudioError, match="STOI cannot score this: it needs about half a second of speech"):
            stoi(RNG.standard_normal(samples), RNG.standard_normal(samples))


def test_bootstrap_interval_covers_the_mean():
    values = RNG.standard_normal(400) + 3
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert bootstrap_interval(np.full(5, 2.0)) == (2.0, 2.0)


def test_pesq_and_stoi_are_best_for_clean_speech(noisy, denoised):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    assert pesq_wb(denoised, denoised) > 4.6 > pesq_wb(denoised, noisy)
    assert stoi(denoised, denoised) == pytest.approx(1.0)
    assert stoi(denoised, noisy) < 0.99


def test_dnsmos_is_better_after_denoising(noisy, denoised):
    pytest.importorskip("speechmos")
    before, after = dnsmos(noisy), dnsmos(denoised)
    assert 1 < before.ovrl < after.ovrl - 0.3 < 4.5
    assert after.bak > before.bak + 0.5
    assert after.sig > after.ovrl
    assert dnsmos(30 * noisy).ovrl > 1  # clipped, where the package itself refuses
    with pytest.raises(AudioError, match="no audio"):
        dnsmos(np.zeros(0))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (3, (2.364589, 1.423267, 1.477861)),
        (10.75, (2.225113, 1.370237, 1.40973)),
        (23.3, (2.608813, 1.59344, 1.591834)),
    ],
)
def test_dnsmos_is_what_its_package_gives(noisy, seconds, expected):
    """`speechmos.dnsmos.run` gave these numbers; it needs librosa, and more."""
    pytest.importorskip("speechmos")
    assert tuple(dnsmos(np.resize(noisy, int(seconds * 16_000)))) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("samples", [1_280, 64_000, 115_200])
def test_dnsmos_of_short_audio_leaves_out_repetitions(noisy, samples, monkeypatch):
    """It is the same number: without the onnx package, the audio is repeated to 9 s."""
    pytest.importorskip("speechmos")
    pytest.importorskip("onnx")
    shorter = dnsmos(noisy[:samples])
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert dnsmos(noisy[:samples]) == shorter


def test_openvino_runs_the_network_of_dnsmos_where_onnx_runtime_is_not_installed(noisy, monkeypatch):
    pytest.importorskip("speechmos")
    pytest.importorskip("openvino")
    expected = dnsmos(noisy)
    load_network.cache_clear()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert tuple(dnsmos(noisy)) == pytest.approx(tuple(expected), abs=1e-3)
    load_network.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'frcrn-accel\[ort\]'"):
        dnsmos(noisy)


def test_pesq_of_no_speech_is_a_clear_error():
    pytest.importorskip("pesq")
    with pytest.raises(AudioError, match="PESQ cannot score this: the reference is silent"):
        pesq_wb(np.zeros(16_000), np.ones(16_000))
    with pytest.raises(AudioError, match="PESQ cannot score this: the estimate is silent"):
        pesq_wb(RNG.standard_normal(16_000), np.zeros(16_000))
    with pytest.raises(AudioError, match="PESQ cannot score this: "):
        pesq_wb(np.ones(100), np.ones(100))


@pytest.mark.parametrize(
    ("metric", "package", "extra", "signals"),
    [(pesq_wb, "pesq", "pesq", 2), (stoi, "pystoi", "eval", 2), (dnsmos, "speechmos", "eval", 1)],
)
def test_a_missing_package_is_one_clear_error(monkeypatch, metric, package, extra, signals):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'frcrn-accel\[{extra}\]'"):
        metric(*[np.ones(10)] * signals)


def test_without_pesq_the_rest_is_scored_and_it_says_so(monkeypatch, tmp_path, capsys):
    """Its package has no wheels, so it may be the only one that is missing."""
    pytest.importorskip("pystoi")
    pytest.importorskip("speechmos")
    monkeypatch.setitem(sys.modules, "pesq", None)
    speech = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000) * (np.arange(32_000) % 8_000 < 4_000)
    for folder, audio in (("clean", speech), ("noisy", speech + 0.01)):
        (tmp_path / folder).mkdir()
        for name in ("a.wav", "b.wav"):
            soundfile.write(tmp_path / folder / name, audio, 16_000)
    monkeypatch.setattr(sys, "argv", ["frcrn-accel", "evaluate", str(tmp_path), "--processes", "1"])
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capsys.readouterr()
    assert exit_.value.code == 0
    assert "DNSMOS OVRL" in out
    assert "STOI" in out
    assert "PESQ" not in out
    (line,) = [line for line in err.splitlines() if "not scored" in line]
    assert line.startswith("not scored: all recordings: PESQ-WB: PESQ needs more packages")
    assert line.endswith("pip install 'frcrn-accel[pesq]'")
