"""The spectrum and the timing of synthetic noises, and what lowers the floor of a recording."""

from __future__ import annotations

import numpy as np
import pytest

from frcrn_accel.train import noises
from frcrn_accel.train.acoustics import lower_floor

RATE = 16_000
SAMPLES = 4 * RATE
SEEDS = range(12)


def made(make, seed: int) -> np.ndarray:
    return make(np.random.default_rng(seed), SAMPLES)


def share_of_power(audio, low_hz, high_hz) -> float:
    power = np.abs(np.fft.rfft(audio)) ** 2
    hz = np.fft.rfftfreq(len(audio), 1 / RATE)
    return float(power[(hz >= low_hz) & (hz < high_hz)].sum() / power.sum())


def frame_levels_db(audio, frame=320) -> np.ndarray:
    frames = audio[: len(audio) // frame * frame].reshape(-1, frame).astype(np.float64)
    return 10 * np.log10(np.mean(frames**2, axis=1) + 1e-12)


def bursts(audio, below_peak_db: float, frame=80) -> list[tuple[int, int]]:
    """Return first and last frame of each stretch that is this close to the loudest frame."""
    loud = frame_levels_db(audio, frame) > frame_levels_db(audio, frame).max() - below_peak_db
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loud.astype(int), [0]])))
    return list(zip(edges[::2], edges[1::2], strict=True))


def modulation_share(audio, low_hz, high_hz, frame=160) -> float:
    """Return the share of the power of the level in dB that lies between two modulation rates."""
    level_db = frame_levels_db(audio, frame)
    power = np.abs(np.fft.rfft((level_db - level_db.mean()) * np.hanning(len(level_db)))) ** 2
    hz = np.fft.rfftfreq(len(level_db), frame / RATE)
    return float(power[(hz >= low_hz) & (hz <= high_hz)].sum() / power[hz > 0].sum())


@pytest.mark.parametrize("name", sorted(set(noises.__all__) - {"speech_shaped"}))
@pytest.mark.parametrize("samples", [1600, 8001])
def test_short_noises(name, samples):
    noise = getattr(noises, name)(np.random.default_rng(0), samples)
    assert noise.shape == (samples,)
    assert noise.dtype == np.float32
    assert np.isfinite(noise).all()


class TestRumble:
    def test_it_lies_below_speech(self):
        found = [made(noises.rumble, seed) for seed in range(24)]
        assert np.median([share_of_power(noise, 4, 100) for noise in found]) > 0.99
        assert min(share_of_power(noise, 4, 310) for noise in found) > 0.9  # hum has harmonics

    def test_knocks_and_swells_come_and_go(self):
        ranges_db = [np.ptp(frame_levels_db(made(noises.rumble, seed), 3200)) for seed in range(24)]
        assert np.mean(np.array(ranges_db) > 10) > 0.3


class TestBangs:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_peaks_and_lengths(self, seed):
        audio = made(noises.bangs, seed)
        assert 10**-0.5 - 1e-3 <= np.abs(audio).max() <= 1 + 1e-6
        lengths = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], np.abs(audio) > 0, [0]]).astype(int))))[::2]
        assert 1 <= len(bursts(audio, 30)) <= 8  # up to four, which may ring
        assert (np.abs(audio) > 0).mean() <= 4 * 0.2 / 4
        assert lengths.max() <= 2 * 0.2 * RATE  # two of them may touch

    def test_the_rest_is_silent(self):
        assert np.mean([np.mean(made(noises.bangs, seed) == 0) for seed in SEEDS]) > 0.85


@pytest.mark.parametrize("seed", SEEDS)
def test_keys_are_struck_three_to_nine_times_a_second(seed):
    audio = made(noises.keystrokes, seed)
    level = np.abs(audio)
    starts, last = [], -RATE
    for i in np.flatnonzero(level > 0.05 * level.max()):
        if i - last > 160:  # 10 ms without sound
            starts.append(i)
        last = i
    assert 2.5 * 4 <= len(starts) <= 2 * 9.5 * 4  # press and release
    assert share_of_power(audio, 200, 8000) > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_cries_have_harmonics_and_pauses(seed):
    audio = made(noises.cries, seed)
    assert share_of_power(audio, 290, 8000) > 0.98
    assert (frame_levels_db(audio) < -80).mean() > 0.05
    start, stop = max(bursts(audio, 20), key=lambda pair: pair[1] - pair[0])
    middle = (start + stop) * 40
    frame = audio[middle - 1024 : middle + 1024] * np.hanning(2048)
    spectrum = np.abs(np.fft.rfft(frame, 8192))
    peaks = np.flatnonzero((spectrum[1:-1] > spectrum[:-2]) & (spectrum[1:-1] > spectrum[2:])) + 1
    peaks = peaks[spectrum[peaks] > 0.03 * spectrum.max()] * RATE / 8192
    assert len(peaks) >= 3
    assert 250 < peaks[0] < 1600


@pytest.mark.parametrize("seed", SEEDS)
def test_gusts_swell_slowly_and_are_low(seed):
    audio = made(noises.gusts, seed)
    assert np.ptp(frame_levels_db(audio, 1600)) > 6
    assert modulation_share(audio, 0.1, 2, frame=1600) > 0.5
    assert share_of_power(audio, 0, 1000) > 0.9


@pytest.mark.parametrize("seed", SEEDS)
def test_speech_shaped_noise_has_the_spectrum_and_the_rhythm_of_speech(seed):
    rng = np.random.default_rng(seed)
    hz = np.fft.rfftfreq(SAMPLES, 1 / RATE)
    speech = np.fft.irfft(np.fft.rfft(rng.standard_normal(SAMPLES)) / (1 + (hz / 500) ** 2), SAMPLES)
    noise = noises.speech_shaped(rng, speech.astype(np.float32))
    for low_hz, high_hz in ((100, 500), (500, 1000), (1000, 2000), (2000, 4000)):
        ratio = share_of_power(noise, low_hz, high_hz) / share_of_power(speech, low_hz, high_hz)
        assert 10 * np.log10(ratio) == pytest.approx(0, abs=2)
    assert modulation_share(noise, 1.5, 8.5) > 1.5 * modulation_share(speech, 1.5, 8.5)


class TestLoweredFloor:
    def test_pauses_are_lowered_and_words_stay(self):
        rng = np.random.default_rng(0)
        time_s = np.arange(SAMPLES) / RATE
        words = np.sum([np.sin(2 * np.pi * 180 * k * time_s) for k in range(1, 20)], 0) * (time_s % 1 < 0.5)
        floor = 0.05 * rng.standard_normal(SAMPLES)
        before = (0.05 * (words + floor)).astype(np.float32)
        after = lower_floor(before, 8)
        inside = np.abs(time_s % 1 - 0.25) < 0.2
        outside = np.abs(time_s % 1 - 0.75) < 0.2
        change_db = [10 * np.log10(np.sum(after[at] ** 2) / np.sum(before[at] ** 2)) for at in (inside, outside)]
        assert change_db[0] == pytest.approx(0, abs=0.1)
        assert -8.2 < change_db[1] < -6

    @pytest.mark.parametrize("audio", [np.zeros(SAMPLES), 0.1 * np.ones(SAMPLES)], ids=["silence", "offset"])
    def test_what_has_no_pauses_stays(self, audio):
        audio = audio.astype(np.float32)
        np.testing.assert_allclose(lower_floor(audio, 8), audio, atol=1e-4)

    def test_steady_noise_stays(self):
        audio = 0.1 * np.random.default_rng(0).standard_normal(SAMPLES).astype(np.float32)
        assert np.array_equal(lower_floor(audio, 8), audio)
