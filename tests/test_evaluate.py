from __future__ import annotations

import sys

import numpy as np
import pytest

from frcrn_accel import AudioError, MissingExtraError
from frcrn_accel.quality import bootstrap_interval, dnsmos, pesq_wb, si_sdr_db, stoi

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 25.0])
def test_si_sdr_of_orthogonal_noise_is_the_snr_at_any_level(snr_db):
    t = np.arange(16_000) / 16_000
    speech, noise = np.sin(2 * np.pi * 300 * t), np.cos(2 * np.pi * 300 * t)
    mixture = speech + noise * 10 ** (-snr_db / 20)
    for gain, offset in ((1, 0), (0.01, 0.5)):
        assert si_sdr_db(speech, gain * mixture + offset) == pytest.approx(snr_db, abs=1e-6)


def test_bootstrap_interval_covers_the_mean():
    values = RNG.standard_normal(400) + 3
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)
    assert bootstrap_interval(np.full(5, 2.0)) == (2.0, 2.0)


def test_pesq_and_stoi_are_best_for_clean_speech(noisy, denoiser):
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    speech = denoiser(noisy, 16_000)
    assert pesq_wb(speech, speech) > 4.6 > pesq_wb(speech, noisy)
    assert stoi(speech, speech) == pytest.approx(1.0)
    assert stoi(speech, noisy) < 0.99


def test_dnsmos_hears_less_noise_after_denoising(noisy, denoiser):
    pytest.importorskip("speechmos.dnsmos", exc_type=ImportError)
    before, after = dnsmos(noisy), dnsmos(denoiser(noisy, 16_000))
    assert 1 < before.ovrl < after.ovrl - 0.3 < 4.5
    assert after.bak > before.bak + 0.5
    assert after.sig > after.ovrl
    assert dnsmos(30 * noisy).ovrl > 1  # clipped, where the package itself refuses
    with pytest.raises(AudioError, match="no audio"):
        dnsmos(np.zeros(0))


def test_pesq_of_no_speech_is_a_clear_error():
    pytest.importorskip("pesq")
    with pytest.raises(AudioError, match="PESQ cannot score this: the reference is silent"):
        pesq_wb(np.zeros(16_000), np.ones(16_000))
    with pytest.raises(AudioError, match="PESQ cannot score this: the estimate is silent"):
        pesq_wb(RNG.standard_normal(16_000), np.zeros(16_000))
    with pytest.raises(AudioError, match="PESQ cannot score this: "):
        pesq_wb(np.ones(100), np.ones(100))


@pytest.mark.parametrize(
    ("metric", "package", "signals"), [(pesq_wb, "pesq", 2), (stoi, "pystoi", 2), (dnsmos, "speechmos", 1)]
)
def test_a_missing_package_is_one_clear_error(monkeypatch, metric, package, signals):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'frcrn-accel\[eval\]'"):
        metric(*[np.ones(10)] * signals)
