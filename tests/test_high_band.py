"""The band above 8 kHz: what is kept of it, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from frcrn_accel import Denoiser
from frcrn_accel.audio import resample
from frcrn_accel.high_band import HighBand, check_high_band
from frcrn_accel.testing import FunctionBackend

RATE_HZ, MODEL_RATE_HZ = 48_000, 16_000
RATES = [16_001, 22_050, 24_000, 32_000, 44_056, 44_100, 47_999, 48_000, 88_200, 96_000, 192_000]


def white(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def above_8_khz(audio: NDArray[np.float32], rate_hz: int) -> NDArray[np.float64]:
    spectrum = np.fft.rfft(audio)
    spectrum[..., np.fft.rfftfreq(audio.shape[-1], 1 / rate_hz) < 8_200] = 0
    return np.fft.irfft(spectrum, audio.shape[-1])


def power_db(audio: NDArray[np.floating], of: NDArray[np.floating]) -> float:
    return float(10 * np.log10(np.mean(np.square(audio)) / np.mean(np.square(of))))


def scaled(
    band: NDArray[np.float32], dry: NDArray[np.float32], wet: NDArray[np.float32], rate_hz: int = RATE_HZ
) -> NDArray[np.float32]:
    high_band = HighBand(rate_hz, MODEL_RATE_HZ, len(band))
    high_band.write(band)
    high_band.write_model(dry, wet)
    return np.concatenate([high_band.read(), high_band.finish()], axis=1)[:, : band.shape[1]]


@pytest.mark.parametrize("rate_hz", RATES)
def test_a_model_that_changes_nothing_gives_back_every_sample(rate_hz):
    """The two bands sum to the signal, also in the cross-over: no dip, no shift."""
    audio = white(2, rate_hz // 2)
    out = Denoiser(backend=FunctionBackend())(audio, rate_hz)
    np.testing.assert_allclose(out, audio, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 100, 191, 192, 193, 1000])
def test_short_signals_come_back_whole(samples):
    audio = white(samples)
    out = Denoiser(backend=FunctionBackend())(audio, RATE_HZ)
    np.testing.assert_allclose(out, audio, atol=2e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000])
def test_up_to_16_khz_nothing_changes_by_a_bit(rate_hz):
    audio = white(2, 9_000)
    denoiser = Denoiser(backend=FunctionBackend(lambda batch: batch * np.float32(0.3)))
    np.testing.assert_array_equal(denoiser(audio, rate_hz), denoiser(audio, rate_hz, high_band="drop"))


def test_dropped_leaves_the_model_alone():
    audio = white(1, 48_000)
    denoiser = Denoiser(backend=FunctionBackend(), high_band="drop")
    dropped = denoiser(audio, RATE_HZ)
    down = resample([audio], RATE_HZ, MODEL_RATE_HZ, 1)
    expected = np.concatenate(list(resample(down, MODEL_RATE_HZ, RATE_HZ, 1)), axis=1)[:, :48_000]
    np.testing.assert_allclose(dropped, expected, atol=1e-6)
    np.testing.assert_array_equal(dropped, denoiser(audio, RATE_HZ, high_band="drop"))
    assert power_db(above_8_khz(denoiser(audio, RATE_HZ, high_band="follow"), RATE_HZ), audio) > -3


def test_the_band_closes_with_the_model():
    """Where the model leaves nothing, the band is silent; where it leaves all, the band is whole."""
    band, dry = white(1, RATE_HZ, seed=1), white(1, MODEL_RATE_HZ, seed=2)
    wet = dry.copy()
    wet[:, MODEL_RATE_HZ // 2 :] *= 1e-3
    out = scaled(band, dry, wet)
    half = RATE_HZ // 2
    np.testing.assert_allclose(out[:, : half - 960], band[:, : half - 960], atol=1e-6)
    assert power_db(out[:, -half // 4 :], band[:, -half // 4 :]) < -40


def test_steady_noise_is_attenuated_between_and_below_speech():
    """A floor learned in a pause of 1 s is removed from the speech after it; 30 dB above it, nothing is lost."""
    noise = white(1, 2 * RATE_HZ, seed=1)
    dry = white(1, 2 * MODEL_RATE_HZ, seed=2)
    wet = dry.copy()
    wet[:, :MODEL_RATE_HZ] *= 1e-2
    late = slice(-RATE_HZ // 2, None)
    assert power_db(scaled(noise, dry, wet)[:, :RATE_HZ], noise[:, :RATE_HZ]) < -40
    assert power_db(scaled(noise, dry, wet)[:, late], noise[:, late]) < -5
    speech = np.zeros_like(noise)
    speech[:, RATE_HZ:] = 30 * white(1, RATE_HZ, seed=3)
    out = scaled(noise + speech, dry, wet)
    assert abs(power_db(out[:, late], speech[:, late])) < 0.1


def test_a_click_that_the_model_removes_is_removed():
    band, dry = np.zeros((1, RATE_HZ), np.float32), white(1, MODEL_RATE_HZ) * np.float32(0.01)
    wet = dry * np.float32(0.01)
    band[0, 30_000:30_096] = white(96, seed=4)
    assert power_db(scaled(band, dry, wet), band) < -40


def test_a_burst_stays_within_a_frame():
    """Nothing is heard more than 8 ms before a burst."""
    band, dry = np.zeros((1, RATE_HZ), np.float32), white(1, MODEL_RATE_HZ)
    band[0, 24_000:24_048] = white(48, seed=4)
    out = scaled(band, dry, dry)
    assert not out[0, : 24_000 - 384].any()
    np.testing.assert_allclose(out, band, atol=1e-6)


def test_channels_are_treated_by_themselves():
    band, dry = white(2, 20_000), white(2, 6_667)
    wet = dry * np.array([[1.0], [0.05]], np.float32)
    both = scaled(band, dry, wet)
    for channel in (slice(0, 1), slice(1, 2)):
        np.testing.assert_array_equal(both[channel], scaled(band[channel], dry[channel], wet[channel]))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 3_000), max_size=8), st.lists(st.integers(0, 1_000), max_size=8), st.sampled_from(RATES)
)
def test_parts_of_any_length_give_the_same_bits(cuts, model_cuts, rate_hz):
    samples, model_samples = rate_hz // 8, 2_000
    band, dry = white(1, samples), white(1, model_samples, seed=1)
    wet = dry * np.linspace(1, 0, model_samples, dtype=np.float32)
    whole = scaled(band, dry, wet, rate_hz)
    high_band = HighBand(rate_hz, MODEL_RATE_HZ, 1)
    pieces = []
    places = np.minimum(np.cumsum([0, *cuts, 10**6]), samples)
    model_places = np.minimum(np.cumsum([0, *model_cuts, 10**6]), model_samples)
    for part in range(max(len(places), len(model_places)) - 1):
        if part + 1 < len(places):
            high_band.write(band[:, places[part] : places[part + 1]])
        if part + 1 < len(model_places):
            at = slice(model_places[part], model_places[part + 1])
            high_band.write_model(dry[:, at], wet[:, at])
        pieces.append(high_band.read())
    out = np.concatenate([*pieces, high_band.finish()], axis=1)[:, :samples]
    np.testing.assert_array_equal(out, whole)


@pytest.mark.parametrize("rate_hz", [16_001, 24_000, 44_100, 48_000, 192_000])
def test_a_stream_needs_no_more_than_the_model_at_its_rate(rate_hz):
    """Streams need a sample to be ready once the model's signals reach 4 ms, and the band 8 ms, beyond it."""
    samples = rate_hz // 10
    high_band = HighBand(rate_hz, MODEL_RATE_HZ, 1)
    high_band.write(np.zeros((1, samples + -(-rate_hz * 8 // 1000)), np.float32))
    model = np.zeros((1, samples * MODEL_RATE_HZ // rate_hz + 65), np.float32)
    high_band.write_model(model, model)
    assert high_band.read().shape[1] >= samples


def test_an_attenuation_limit_applies_to_the_band():
    audio = white(1, 24_000)
    denoiser = Denoiser(backend=FunctionBackend(np.zeros_like), attenuation_limit_db=12)
    np.testing.assert_allclose(denoiser(audio, RATE_HZ), audio * 10 ** (-12 / 20), atol=1e-6)
    np.testing.assert_allclose(denoiser(audio, RATE_HZ, attenuation_limit_db=0), audio, atol=1e-7)


@pytest.mark.parametrize("limit_db", [None, 6.0])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_speech_and_noise_are_the_input(rate_hz, limit_db):
    audio = white(2, 20_001)
    denoiser = Denoiser(backend=FunctionBackend(lambda batch: batch * np.float32(0.3)), attenuation_limit_db=limit_db)
    speech, noise = denoiser(audio, rate_hz), denoiser(audio, rate_hz, keep="noise")
    np.testing.assert_allclose(speech + noise, audio, atol=1e-7)
    assert np.abs(noise).max() > 0.05


def test_the_noise_of_integers_is_rounded_once():
    audio = np.round(white(8_000) * 32_768).astype(np.int16)
    denoiser = Denoiser(backend=FunctionBackend(lambda batch: batch * np.float32(0.25)))
    speech, noise = denoiser(audio, 16_000), denoiser(audio, 16_000, keep="noise")
    assert np.abs(speech.astype(int) + noise - audio).max() <= 1


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="high_band must be one of follow, drop, got 'both'"):
        check_high_band("both")
    denoiser = Denoiser(backend=FunctionBackend())
    with pytest.raises(ValueError, match="high_band must be one of"):
        denoiser(white(100), 48_000, high_band="up")
    with pytest.raises(ValueError, match="keep must be one of speech, noise, got 'both'"):
        denoiser(white(100), 48_000, keep="both")


def test_the_band_is_the_signal_less_what_resampling_leaves():
    """Resampling to the model's rate and back loses nothing below 7.3 kHz: the two bands cross above."""
    t = np.arange(24_000) / RATE_HZ
    tone = np.sin(2 * np.pi * 7_200 * t).astype(np.float32)[None] * np.hanning(24_000).astype(np.float32)
    down = np.concatenate(list(resample([tone], RATE_HZ, MODEL_RATE_HZ, 1)), axis=1)
    up = np.concatenate(list(resample([down], MODEL_RATE_HZ, RATE_HZ, 1)), axis=1)[:, :24_000]
    assert power_db(tone - up, tone) < -60


def test_noise_under_speech_without_a_pause_is_attenuated():
    """There is no pause: what stays for a second is noise, and speech 30 dB above it is kept."""
    noise, dry = white(1, 3 * RATE_HZ, seed=1), white(1, 3 * MODEL_RATE_HZ, seed=2)
    syllables = np.sin(2 * np.pi * 2 * np.arange(3 * RATE_HZ) / RATE_HZ) > 0
    speech = 30 * white(1, 3 * RATE_HZ, seed=3) * syllables
    wet = dry * np.where(syllables[::3], 1, 0.5).astype(np.float32)
    out = scaled(noise + speech, dry, wet)
    late, pauses = np.arange(3 * RATE_HZ) > 2 * RATE_HZ, ~syllables
    pauses[: 2 * RATE_HZ] = False
    assert power_db(out[:, pauses], noise[:, pauses]) < -5
    assert abs(power_db(out[:, late & syllables], speech[:, late & syllables])) < 0.1


def test_a_click_in_digital_silence_is_removed():
    """The residue of a click is louder than the silence around it, but must not count as speech."""
    band, dry = np.zeros((1, RATE_HZ), np.float32), np.zeros((1, MODEL_RATE_HZ), np.float32)
    band[0, 30_000:30_096], dry[0, 10_000:10_032] = white(96, seed=4), white(32, seed=5)
    wet = dry * np.float32(1e-2) + white(1, MODEL_RATE_HZ, seed=6) * np.float32(1e-5)
    assert power_db(scaled(band, dry, wet), band) < -30


@pytest.mark.parametrize("scale", [1e6, 1e9, 1e12])
def test_noise_far_beyond_full_scale_is_attenuated_down_to_digital_silence(scale):
    """The floor of such noise is more than float32 can divide by the power of silence; nothing warns of that."""
    is_sound = np.arange(2 * RATE_HZ) < RATE_HZ
    band, dry = white(1, 2 * RATE_HZ, seed=7) * is_sound, white(1, 2 * MODEL_RATE_HZ, seed=8) * is_sound[::3]
    out = scaled(np.float32(scale) * band, np.float32(scale) * dry, np.zeros_like(dry))
    assert not out.any()
