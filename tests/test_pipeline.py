"""The pipeline, with plain functions as engines."""

from __future__ import annotations

import numpy as np
import pytest

from frcrn_accel import Denoiser, EngineError, Windowing
from frcrn_accel.models import DEFAULT_MODEL, find_model
from frcrn_accel.pipeline import Engine, Signal, Treatment, denoise_signal
from frcrn_accel.quality import si_sdr_db
from frcrn_accel.testing import FunctionBackend

RNG = np.random.default_rng(0)
SMALL = Windowing(window_s=1.0, past_s=0.1, future_s=0.04, fade_s=0.1)


def noise(*shape: int) -> np.ndarray:
    return (0.1 * RNG.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("samples", [1, 2, 319, 320, 321, 639, 640, 641, 15_000, 16_000, 16_001, 40_000, 123_457])
def test_identity_gives_back_every_sample(samples, batch_size):
    audio = noise(2, samples)
    denoiser = Denoiser(backend=FunctionBackend(), windowing=SMALL, batch_size=batch_size)
    np.testing.assert_allclose(denoiser(audio, 16_000), audio, atol=1e-6)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("samples", [100, 50_001])
def test_identity_at_other_rates(rate, samples):
    """A low tone, faded in and out, has no content above 8 kHz that could be lost."""
    t = np.arange(samples) / rate
    audio = (0.3 * np.cos(2 * np.pi * 200 * t) * np.hanning(samples + 2)[1:-1]).astype(np.float32)
    out = Denoiser(backend=FunctionBackend(), windowing=SMALL)(audio, rate)
    assert out.shape == audio.shape
    np.testing.assert_allclose(out, audio, atol=0.05 if samples == 100 else 1e-3)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 192_000])
@pytest.mark.parametrize("samples", [1, 2, 13])
def test_a_few_samples_at_other_rates(identity, rate, samples):
    """A pulse has content at all frequencies, so only a part of it is returned."""
    out = identity(np.full(samples, 0.5, np.float32), rate)
    assert out.shape == (samples,)
    assert 0 < out.max() < 0.7


def test_the_engine_sees_the_training_level_and_the_caller_the_old_one():
    seen = []

    def engine(audio):
        seen.append(np.sqrt(np.mean(audio[:, 320:-640] ** 2, axis=1)))
        return audio * 0.5

    audio = noise(2, 16_000) * np.array([[1.0], [1e-3]], np.float32)
    out = Denoiser(backend=FunctionBackend(engine), batch_size=2)(audio, 16_000)
    np.testing.assert_allclose(out, audio * 0.5, rtol=1e-4)
    # Gaussian noise: the RMS of the samples above the mean power is 1.59 times that of all.
    np.testing.assert_allclose(seen[0], 10 ** (-25 / 20) / 1.586, rtol=0.02)


def test_one_gain_for_the_whole_signal():
    """The engine gets a quiet second half as quiet, relative to the first, as it is."""
    windows = []

    def engine(audio):
        windows.append(audio.copy())
        return audio

    audio = noise(160_000)
    audio[80_000:] *= 0.01
    Denoiser(backend=FunctionBackend(engine), windowing=SMALL)(audio, 16_000)
    assert len(windows) > 10
    assert np.std(windows[-1]) / np.std(windows[0][:, 320:]) == pytest.approx(0.01, rel=0.05)


def test_windows_are_one_shape_and_batches_are_full():
    shapes = []

    def engine(audio):
        shapes.append(audio.shape)
        return audio

    Denoiser(backend=FunctionBackend(engine), windowing=SMALL, batch_size=4)(noise(2, 160_000), 16_000)
    assert {shape[1] for shape in shapes} == {shapes[0][1]}
    assert {shape[0] for shape in shapes[:-1]} == {4}


def test_more_channels_than_a_batch_holds():
    shapes = []

    def engine(audio):
        shapes.append(audio.shape[0])
        return audio

    audio = noise(5, 8_000)
    np.testing.assert_allclose(
        Denoiser(backend=FunctionBackend(engine), batch_size=2)(audio, 16_000), audio, atol=1e-6
    )
    assert shapes == [2, 2, 1]


def test_windows_are_cross_faded_at_the_same_place():
    """If the engine returns the number of each window, the joined signal rises monotonically."""
    count = 0

    def engine(audio):
        nonlocal count
        count += 1
        return np.full_like(audio, count)

    audio = noise(100_000)
    out = Denoiser(backend=FunctionBackend(engine), windowing=SMALL)(audio, 16_000)
    steps = np.diff(out / out[0])
    assert steps.min() > -1e-5
    assert steps.max() < 1.1 / (0.1 * 16_000)
    assert out[-1] / out[0] == pytest.approx(count)


@pytest.mark.parametrize("limit_db", [0.0, 6.0, 20.0, float("inf")])
def test_attenuation_limit_mixes_the_aligned_dry_signal(limit_db):
    audio = noise(2, 50_000)
    out = Denoiser(backend=FunctionBackend(np.zeros_like), attenuation_limit_db=limit_db, windowing=SMALL)(
        audio, 16_000
    )
    np.testing.assert_allclose(out, audio * 10 ** (-limit_db / 20), atol=1e-7)


def test_attenuation_limit_zero_is_the_input_at_any_rate():
    audio = RNG.integers(-32_768, 32_768, 10_000, dtype=np.int16)
    out = Denoiser(backend=FunctionBackend(np.zeros_like), attenuation_limit_db=0)(audio, 44_100)
    np.testing.assert_array_equal(out, audio)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (lambda audio: audio * np.float32(np.nan), "the engine returned NaN or infinity for finite audio"),
        (lambda audio: audio[:, :-1], r"the engine returned \(1, 8639\) for a batch of \(1, 8640\)"),
    ],
)
def test_an_engine_that_fails_is_an_error(engine, message):
    with pytest.raises(EngineError, match=message):
        Denoiser(backend=FunctionBackend(engine))(noise(8_000), 16_000)


@pytest.mark.parametrize("offset", [0.02, 0.1, 0.3, -0.5])
def test_a_constant_offset_changes_the_result_by_hardly_anything(noisy, denoiser, offset):
    audio = noisy[:64_000]
    found = denoiser(audio + np.float32(offset), 16_000)
    assert si_sdr_db(denoiser(audio, 16_000), found) > 35
    assert abs(found.mean()) < 1e-3


@pytest.mark.parametrize(("rate", "channels", "reads"), [(16_000, 1, 1), (48_000, 1, 2), (16_000, 64, 3)])
def test_a_signal_that_is_not_long_is_read_less_often(rate, channels, reads):
    audio = noise(channels, 140_000)  # of 64 channels that is 36 MB
    opened = 0

    def blocks():
        nonlocal opened
        opened += 1
        return iter(np.array_split(audio, 7, axis=1))

    model = find_model(DEFAULT_MODEL)
    engine = Engine(FunctionBackend().load(model, 1), model.metadata, SMALL, 8)
    out = np.concatenate(list(denoise_signal(Signal(blocks, rate, channels), engine, Treatment())), axis=1)
    assert opened == reads
    np.testing.assert_allclose(out, audio, atol=1e-6 if rate == 16_000 else 0.2)
